// db = sum_n dZ alone, where dW is computed elsewhere.
#include "column_sum.cuh"

typedef Sums Shared;

FUNCTION void run(const COLUMN_SUM& p, const Block& block) {
    column_sum<OPTION>(p, block.x * COLUMNS, *(Shared*)block.shared);
}
