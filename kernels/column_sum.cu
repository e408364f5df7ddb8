// db = sum_n dZ alone, where dW is computed elsewhere.
#include "column_sum.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(COLUMN_SUM p) { column_sum<OPTION>(p, (int64)blockIdx.x * COLUMNS); }
