// The product of both passes:  dW = X^T dZ,  db = sum_n dZ.   X (n, i), dZ (n, o) give dW (i, o), db (o), or move W and b at once.
//
// The first blocks sum COLUMNS columns of dZ each, the others compute the tiles of dW.
#include "column_sum.cuh"
#include "product.cuh"

struct Finish {
    typedef OPTION::Before<GN> Before;
    OPTION rule;
    int64 row;

    FUNCTION Finish(const UPDATE& record) : rule(record), row(record.row) {}
    FUNCTION int64 offset(int64 i, int64 o) const { return i * row + o * (int64)sizeof(real); }
    FUNCTION Before before(int64 i, int64 o, int count) const { return rule.before<GN>(offset(i, o), count); }
    FUNCTION void after(int64 i, int64 o, const Before& old, const Results& g, int count) const {
        rule.after<GN>(offset(i, o), old, g, count);
    }
};

union Shared {
    Ring ring;
    Sums sums;
};

FUNCTION void run(const PRODUCT& p, const SPLIT& s, const UPDATE& q, const COLUMN_SUM& b, const Block& block) {
    const int sums = (int)((b.columns + COLUMNS - 1) / COLUMNS);
    if (block.x < sums) {
        if (block.y == 0) column_sum<OPTION>(b, block.x * COLUMNS, ((Shared*)block.shared)->sums);
        return;
    }
    Operand X = {(const char*)p.A, p.A_row, p.A_k}, dZ = {(const char*)p.B, sizeof(real), p.B_row};
    product<Finish, false, false>(X, dZ, p, s, block, block.x - sums, q);
}
