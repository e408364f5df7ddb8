// How numbers move: vectors of up to 16 bytes, and copies to shared memory that arrive while the kernel computes.
#pragma once

[[maybe_unused]] constexpr int WIDE = 16 / sizeof(real);  // numbers that one instruction moves

template <int N>
struct alignas(N * sizeof(real)) Vector {
    real at[N];
};

// The first `count` of N numbers, in one instruction if all of them count and the address allows it.
template <int N>
FUNCTION Vector<N> read(const char* from, int count = N) {
    if (count == N && (int64)from % sizeof(Vector<N>) == 0) return *(const Vector<N>*)from;
    Vector<N> v = {};
#pragma unroll
    for (int j = 0; j < N; j++)
        if (j < count) v.at[j] = ((const real*)from)[j];
    return v;
}

template <int N>
FUNCTION void write(char* to, const Vector<N>& v, int count = N) {
    if (count == N && (int64)to % sizeof(Vector<N>) == 0) {
        *(Vector<N>*)to = v;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < count) ((real*)to)[j] = v.at[j];
    }
}

#ifndef CUDA_EMULATED
#if __CUDA_ARCH__ >= 800
FUNCTION unsigned shared_address(void* shared) { return (unsigned)__cvta_generic_to_shared(shared); }
FUNCTION void copy_async_4(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global));
}
FUNCTION void copy_async_8(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global));
}
FUNCTION void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global));
}
FUNCTION void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
FUNCTION void copy_async_wait() {  // until at most the last N groups that this thread committed are on their way
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else  // a plain load and store: the next barrier waits for it
FUNCTION void copy_async_4(void* shared, const void* global) { *(int*)shared = *(const int*)global; }
FUNCTION void copy_async_8(void* shared, const void* global) { *(int2*)shared = *(const int2*)global; }
FUNCTION void copy_async_16(void* shared, const void* global) { *(int4*)shared = *(const int4*)global; }
FUNCTION void copy_async_commit() {}
template <int N>
FUNCTION void copy_async_wait() {}
#endif
#endif

template <int N>
FUNCTION void copy_async(real* shared, const char* global) {
    if constexpr (N * sizeof(real) == 4) copy_async_4(shared, global);
    if constexpr (N * sizeof(real) == 8) copy_async_8(shared, global);
    if constexpr (N * sizeof(real) == 16) copy_async_16(shared, global);
}
