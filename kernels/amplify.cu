// The backward pass of one hidden layer after its product:  dZ <- dZ * f'(Z), a block of THREADS a row.
//
// The record is that of activate: Z is what was saved, A is dZ.
#include "activations.cuh"

FUNCTION void run(const ACTIVATE& p, const Block& block) {
    const real* saved = (const real*)(p.Z + block.x * p.Z_row);
    real* dZ = (real*)(p.A + block.x * p.A_row);
    for (int64 i = threadIdx.x; i < p.columns; i += THREADS) dZ[i] *= OPTION::gain(saved[i]);
}
