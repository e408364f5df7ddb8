// The part of CUDA C++ that the kernels use, for g++.  Where hardware may do one of several things, this does the worst.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <bit>
#include <limits>
#include <source_location>
#include <type_traits>
#include <utility>

#define CUDA_EMULATED 1

// -- vector types -----------------------------------------------------------------------------------------------------

#define EMULATED_VECTORS(T, name)                                        \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                   \
    struct name##3 { T x, y, z; };                                       \
    struct alignas(16) name##4 { T x, y, z, w; };                        \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }           \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }   \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// -- what scheduler.cpp has -------------------------------------------------------------------------------------------

#pragma GCC visibility push(default)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulated {

using Place = std::source_location;  // of a call in the kernels' text
const char* text(Place place);

extern char* dynamic_shared;  // of the block that runs

// Called by a thread: ends the launch.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

enum WarpOperation { warp_sync, warp_shuffle, warp_ballot };
int lane();
void wait_for_block(Place place);
void wait_for_grid(Place place);
uint64_t wait_for_warp(WarpOperation operation, unsigned mask, uint64_t value, int source, Place place);

void copy_async(void* shared, const void* global, int size, int bytes, Place place);
void copy_async_commit();
void copy_async_wait(int pending);

struct Kernel {
    const char* name;
    void (*call)(void** arguments);
    char* (*anchor)();
    size_t parameters;
    const size_t* sizes;
};

struct Launch {  // the same in __init__.py
    unsigned grid[3], block[3], shared_bytes;
    int cooperative, order;
    uint64_t seed;
};

// Gives what went wrong, or null.
const char* run(const Kernel& what, const Launch& how, void** arguments, const size_t* sizes, size_t count);

}  // namespace emulated

#pragma GCC visibility pop

#define EMULATED_PLACE emulated::Place place = emulated::Place::current()  // the last parameter: where the caller is

// -- words of the language --------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define __shared__ static thread_local  // see find_statics() in scheduler.cpp
// What `extern __shared__ T name[];` becomes.  The first statement is there to refuse it outside of a function.
#define DYNAMIC_SHARED(T, name) \
    (void)0;                    \
    T* const name = reinterpret_cast<T*>(emulated::dynamic_shared)

#undef assert
#define assert(truth) ((truth) ? void() : emulated::fail("assertion `%s` failed in %s:%d", #truth, __FILE__, __LINE__))
[[noreturn]] inline void __trap(EMULATED_PLACE) { emulated::fail("__trap() in %s", emulated::text(place)); }

// -- barriers, and what warps exchange --------------------------------------------------------------------------------

inline void __syncthreads(EMULATED_PLACE) { emulated::wait_for_block(place); }
inline void grid_sync(EMULATED_PLACE) { emulated::wait_for_grid(place); }

inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

namespace emulated {

template <class T>
T shuffle(unsigned mask, T value, int source, Place place) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    return std::bit_cast<T>(Bits(wait_for_warp(warp_shuffle, mask, std::bit_cast<Bits>(value), source, place)));
}

inline int group(int width, Place place) {  // of lanes that a shuffle stays in: its first
    if (width < 1 || width > 32 || width & (width - 1)) fail("a shuffle's width of %d in %s", width, text(place));
    return lane() & ~(width - 1);
}

}  // namespace emulated

inline void __syncwarp(unsigned mask = ~0u, EMULATED_PLACE) {
    emulated::wait_for_warp(emulated::warp_sync, mask, 0, 0, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_PLACE) {
    return unsigned(emulated::wait_for_warp(emulated::warp_ballot, mask, predicate != 0, 0, place));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATED_PLACE) {
    return emulated::shuffle(mask, value, emulated::group(width, place) + (source & (width - 1)), place);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_PLACE) {
    const int lane = emulated::lane(), source = lane - int(delta);
    return emulated::shuffle(mask, value, source < emulated::group(width, place) ? lane : source, place);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_PLACE) {
    const int lane = emulated::lane(), source = lane + int(delta);
    return emulated::shuffle(mask, value, source >= emulated::group(width, place) + width ? lane : source, place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, EMULATED_PLACE) {
    const int lane = emulated::lane(), source = lane ^ flip;
    return emulated::shuffle(mask, value, source >= emulated::group(width, place) + width ? lane : source, place);
}

// -- atomic operations (nothing comes between: the threads share one thread of the CPU) --------------------------------

namespace emulated {
template <class T, class... Allowed>
constexpr bool one_of = (std::is_same_v<T, Allowed> || ...);
template <class T>
using Same = std::type_identity_t<T>;  // of another argument, to which this one is converted
using Long = unsigned long long;
}  // namespace emulated

template <class T>
T atomicAdd(T* address, emulated::Same<T> value) {
    static_assert(emulated::one_of<T, int, unsigned, emulated::Long, float, double>);
    const T old = *address;
    if constexpr (std::is_same_v<T, int>)
        *address = int(unsigned(old) + unsigned(value));
    else
        *address = old + value;
    return old;
}

template <class T>
T atomicExch(T* address, emulated::Same<T> value) {
    static_assert(emulated::one_of<T, int, unsigned, emulated::Long, float>);
    return std::exchange(*address, value);
}

template <class T>
T atomicCAS(T* address, emulated::Same<T> expected, emulated::Same<T> value) {
    static_assert(emulated::one_of<T, int, unsigned, emulated::Long>);
    return *address == expected ? std::exchange(*address, value) : *address;
}

// -- asynchronous copies to shared memory: poison on the way, there when waited for ------------------------------------

// Of `bytes` from global memory; the rest of what is written to shared memory is zero.
inline void copy_async_16(void* shared, const void* global, int bytes = 16, EMULATED_PLACE) {
    emulated::copy_async(shared, global, 16, bytes, place);
}
inline void copy_async_8(void* shared, const void* global, int bytes = 8, EMULATED_PLACE) {
    emulated::copy_async(shared, global, 8, bytes, place);
}
inline void copy_async_4(void* shared, const void* global, int bytes = 4, EMULATED_PLACE) {
    emulated::copy_async(shared, global, 4, bytes, place);
}

inline void copy_async_commit() { emulated::copy_async_commit(); }

// Until at most the last N groups that this thread committed are on their way.
template <int N>
void copy_async_wait() {
    emulated::copy_async_wait(N);
}

// -- arithmetic (-ffp-contract=off: one rounding for each operator) ----------------------------------------------------

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }

inline int __float_as_int(float a) { return std::bit_cast<int>(a); }
inline unsigned __float_as_uint(float a) { return std::bit_cast<unsigned>(a); }
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return std::bit_cast<long long>(a); }
inline double __longlong_as_double(long long a) { return std::bit_cast<double>(a); }

namespace emulated {

// As the hardware does: the other argument beside a NaN, and +0 above -0.
template <class T>
T smaller(T a, T b) {
    if (a == b) return signbit(a) ? a : b;
    return b != b || a < b ? a : b;
}

template <class T>
T larger(T a, T b) {
    if (a == b) return signbit(a) ? b : a;
    return b != b || a > b ? a : b;
}

// Conversions that saturate; NaN gives 0, or the smallest number where 64 bits take part.
template <class I, class T>
I to_integer(T a) {
    constexpr T end = T(uint64_t(1) << (8 * sizeof(I) - 1));
    if (a != a) return sizeof(I) == 8 || sizeof(T) == 8 ? std::numeric_limits<I>::min() : 0;
    if (a >= end) return std::numeric_limits<I>::max();
    return a < -end ? std::numeric_limits<I>::min() : I(a);
}

}  // namespace emulated

inline int __float2int_rn(float a) { return emulated::to_integer<int>(__builtin_rintf(a)); }
inline int __double2int_rn(double a) { return emulated::to_integer<int>(__builtin_rint(a)); }
inline long long __double2ll_rn(double a) { return emulated::to_integer<long long>(__builtin_rint(a)); }

#undef fminf
#undef fmaxf
#define fminf emulated::smaller<float>
#define fmaxf emulated::larger<float>
#define fmin emulated::smaller<double>
#define fmax emulated::larger<double>

#define EMULATED_MIN_MAX(T)                          \
    inline T min(T a, T b) { return a < b ? a : b; } \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline int __popc(unsigned a) { return std::popcount(a); }
inline int __clz(int a) { return std::countl_zero(unsigned(a)); }
inline int __ffs(int a) { return a ? std::countr_zero(unsigned(a)) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

template <class T>
T __ldg(const T* address) {
    return *address;
}

// -- how the host gets at a kernel ------------------------------------------------------------------------------------

namespace emulated {

static thread_local volatile char anchor;

template <class Function>
struct Signature;

template <class... P>
struct Signature<void (*)(P...)> {
    static_assert((std::is_trivially_copyable_v<P> && ...), "a kernel's parameters are scalars and plain structs");
    static_assert((sizeof(P) + ... + 0) <= 4096, "a kernel's parameters are at most 4096 bytes");
    static constexpr size_t sizes[] = {sizeof(P)..., 0};

    template <auto kernel, size_t... I>
    static void call(void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<P*>(arguments[I])...);
    }

    template <auto kernel>
    static Kernel describe(const char* name) {
        return {name, [](void** arguments) { call<kernel>(arguments, std::index_sequence_for<P...>()); },
                [] { return anchor = 0, const_cast<char*>(&anchor); }, sizeof...(P), sizes};
    }
};

}  // namespace emulated

#define EMULATED_KERNEL(name)                                                                                 \
    extern "C" __attribute__((visibility("default"))) const char* emulated_launch_##name(                     \
        const emulated::Launch* how, void** arguments, const size_t* sizes, size_t count) {                   \
        const emulated::Kernel kernel = emulated::Signature<decltype(&name)>::describe<&name>(#name);         \
        return emulated::run(kernel, *how, arguments, sizes, count);                                          \
    }
