// How the threads of a launch run on one thread of the CPU: one after the other, each until it has to wait for the others.
//
// A thread that waits keeps its fiber (a stack of its own); one that returns hands its fiber on, so that a kernel without
// barriers needs one fiber and no switches.  The scheduler runs the threads that can run, in ascending, descending or random
// order, until none can; then it lets the warps and barriers go on that are complete, and if there are none but some threads
// have not returned, it says who waits where.
//
// cuda_shim.h declares what is called from outside.

#include <link.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#ifdef EMULATED_SANITIZE
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_ASSEMBLY
#else
#include <ucontext.h>  // anywhere, but with a system call at each switch
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {

char* dynamic_shared;

// -- fibers -----------------------------------------------------------------------------------------------------------

#ifdef EMULATED_SANITIZE
constexpr size_t stack_bytes = 256 << 10;  // instrumented frames are larger
#else
constexpr size_t stack_bytes = 64 << 10;
#endif
static const size_t page = sysconf(_SC_PAGESIZE);

struct Fiber {
    char* stack = nullptr;
    const void* bottom = nullptr;  // what the sanitizer has to know: where the stack is,
    size_t size = 0;
    void* fake_stack = nullptr;  // and what it kept of it
#ifdef EMULATED_ASSEMBLY
    void* pointer = nullptr;  // the stack pointer while others run
#else
    ucontext_t context;
#endif
};

static Fiber scheduler;
static std::vector<Fiber*> fibers, idle_fibers;

#ifdef EMULATED_ASSEMBLY
extern "C" __attribute__((visibility("hidden"))) void emulated_switch(void** from, void* to);
asm(R"(
    .pushsection .text
emulated_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .popsection
)");
#endif

static void arrived([[maybe_unused]] Fiber& fiber) {
#ifdef EMULATED_SANITIZE
    Fiber other;
    Fiber& from = &fiber == &scheduler ? other : scheduler;  // a fiber is always entered from the scheduler
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &from.bottom, &from.size);
#endif
}

__attribute__((noinline)) static void change(Fiber& from, Fiber& to) {
#ifdef EMULATED_SANITIZE
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef EMULATED_ASSEMBLY
    emulated_switch(&from.pointer, to.pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
    arrived(from);
}

static void run_threads();  // what every fiber does, forever

// Ready to begin run_threads(), whatever it did before.
static void renew(Fiber& fiber) {
    fiber.fake_stack = nullptr;
#ifdef EMULATED_SANITIZE
    __asan_unpoison_memory_region(fiber.bottom, fiber.size);
#endif
#ifdef EMULATED_ASSEMBLY
    void** top = reinterpret_cast<void**>(fiber.stack + page + stack_bytes);
    *--top = nullptr;  // where a caller's address would be: run_threads() expects it below a multiple of 16
    *--top = reinterpret_cast<void*>(run_threads);
    top -= 6;  // the registers that emulated_switch takes from the stack
    fiber.pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack + page;
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_threads, 0);
#endif
}

static Fiber* take_fiber() {
    if (idle_fibers.empty()) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* stack = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (stack == MAP_FAILED) return nullptr;
        mprotect(stack, page, PROT_NONE);  // an overflow is a crash, not another thread's variables
        Fiber* fiber = new Fiber;
        fiber->stack = static_cast<char*>(stack);
        fiber->bottom = fiber->stack + page;
        fiber->size = stack_bytes;
        renew(*fiber);
        fibers.push_back(fiber);
        idle_fibers.push_back(fiber);
    }
    Fiber* fiber = idle_fibers.back();
    idle_fibers.pop_back();
    return fiber;
}

// -- threads and blocks -----------------------------------------------------------------------------------------------

enum State { ready, at_barrier, at_warp, at_grid, returned };

struct Copy {
    void* to;
    const void* from;
    int size, bytes;  // `bytes` are copied, the rest of `size` is zeroed
    int group;
};

struct Thread {
    uint3 index;
    State state;
    Fiber* fiber;  // none before it has begun
    Place place;   // of the call in which it waits
    WarpOperation operation;
    unsigned mask;
    int source;      // the lane whose value it wants
    uint64_t value;  // what it offers to its warp, then what it gets
    int groups;      // of asynchronous copies, committed so far
    std::vector<Copy> copies;
};

struct Block {
    uint3 index;
    int ready;  // how many threads are
    std::vector<Thread> threads;
    char* dynamic;              // dynamic shared memory
    std::vector<char> statics;  // static shared memory while another block of a cooperative launch runs
};

constexpr size_t shared_limit = 227 << 10, margin = 256;  // bytes; the margin must still be poison when a block returns

static const Launch* launch;
static const Kernel* kernel;
static void** kernel_arguments;
static std::vector<Block> blocks;
static Block* block;
static Thread* thread;
static std::vector<unsigned> thread_order, block_order;
static size_t cursor;  // into thread_order: whose turn is next
static uint64_t random_state;
static char error[1024];

static bool same(Place a, Place b) {
    return a.line() == b.line() && (a.file_name() == b.file_name() || !strcmp(a.file_name(), b.file_name()));
}

const char* text(Place place) {
    static char written[200];
    snprintf(written, sizeof written, "%s:%u", place.file_name(), unsigned(place.line()));
    return written;
}

static void describe(const char* format, va_list arguments, bool of_thread) {
    const uint3 b = blockIdx;
    int n = snprintf(error, sizeof error, "kernel '%s', block (%u, %u, %u)", kernel->name, b.x, b.y, b.z);
    if (of_thread) {
        const uint3 t = thread->index;
        n += snprintf(error + n, sizeof error - n, ", thread (%u, %u, %u)", t.x, t.y, t.z);
    }
    n += snprintf(error + n, sizeof error - n, ": ");
    vsnprintf(error + n, sizeof error - n, format, arguments);
}

// Called by a thread: ends the launch.
void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(format, arguments, true);
    va_end(arguments);
    change(*thread->fiber, scheduler);
    __builtin_unreachable();
}

// Called by the scheduler.
__attribute__((format(printf, 1, 2))) static void fail_block(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(format, arguments, false);
    va_end(arguments);
}

// Called by a thread: returns when the scheduler lets it go on.
static void wait(State state, Place place) {
    thread->state = state;
    thread->place = place;
    --block->ready;
    change(*thread->fiber, scheduler);
}

void wait_for_block(Place place) { wait(at_barrier, place); }

void wait_for_grid(Place place) {
    if (!launch->cooperative) fail("grid_sync() in %s of a launch that is not cooperative", text(place));
    wait(at_grid, place);
}

int lane() { return int(thread - block->threads.data()) % 32; }

uint64_t wait_for_warp(WarpOperation operation, unsigned mask, uint64_t value, int source, Place place) {
    if (!(mask >> lane() & 1)) fail("lane %d is not in the mask %#x in %s", lane(), mask, text(place));
    thread->operation = operation;
    thread->mask = mask;
    thread->value = value;
    thread->source = source;
    wait(at_warp, place);
    return thread->value;
}

static void run_threads() {
    arrived(*thread->fiber);
    for (;;) {
        kernel->call(kernel_arguments);
        thread->state = returned;
        --block->ready;
        Fiber* fiber = thread->fiber;
        if (cursor < thread_order.size()) {
            Thread& next = block->threads[thread_order[cursor]];
            if (next.state == ready && !next.fiber) {
                ++cursor;
                next.fiber = fiber;
                thread = &next;
                threadIdx = next.index;
                continue;
            }
        }
        idle_fibers.push_back(fiber);
        change(*fiber, scheduler);
    }
}

static void arrange(std::vector<unsigned>& order) {
    if (launch->order != 2) return;
    for (size_t i = order.size(); i > 1; --i) {
        random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
        std::swap(order[i - 1], order[(random_state >> 16) % i]);
    }
}

static void count_up_or_down(std::vector<unsigned>& order, size_t count) {
    order.resize(count);
    for (size_t i = 0; i < count; ++i) order[i] = unsigned(launch->order == 1 ? count - 1 - i : i);
}

static void run_ready_threads() {
    while (block->ready > 0) {
        arrange(thread_order);
        for (cursor = 0; cursor < thread_order.size();) {
            thread = &block->threads[thread_order[cursor++]];
            if (thread->state != ready) continue;
            if (!thread->fiber) thread->fiber = take_fiber();
            if (!thread->fiber) return fail_block("no memory for one more thread's stack");
            threadIdx = thread->index;
            change(scheduler, *thread->fiber);
            if (*error) return;
        }
    }
}

// Exchanges the values of the lanes in `first`'s mask if all that have not returned are there; a missing lane's is poison.
static bool release_lanes(Thread* lanes, int count, const Thread& first) {
    const WarpOperation operation = first.operation;
    const unsigned mask = first.mask;
    const Place place = first.place;
    unsigned present = 0;
    for (int i = 0; i < count; ++i) {
        if (!(mask >> i & 1) || lanes[i].state == returned) continue;
        if (lanes[i].state != at_warp || lanes[i].operation != operation || lanes[i].mask != mask) return false;
        if (!same(lanes[i].place, place)) return false;
        present |= 1u << i;
    }
    uint64_t offered[32], ballot = 0;
    for (int i = 0; i < count; ++i) {
        offered[i] = lanes[i].value;
        if (present >> i & 1 && offered[i]) ballot |= 1u << i;
    }
    for (int i = 0; i < count; ++i) {
        if (!(present >> i & 1)) continue;
        const int source = lanes[i].source;
        if (operation == warp_ballot) lanes[i].value = ballot;
        if (operation == warp_shuffle) lanes[i].value = present >> source & 1 ? offered[source] : ~uint64_t(0);
        lanes[i].state = ready;
        ++block->ready;
    }
    return true;
}

static bool release_warps() {
    bool released = false;
    const int count = int(block->threads.size());
    for (int start = 0; start < count; start += 32) {
        Thread* lanes = &block->threads[start];
        const int width = std::min(32, count - start);
        for (int i = 0; i < width; ++i)
            if (lanes[i].state == at_warp && release_lanes(lanes, width, lanes[i])) released = true;
    }
    return released;
}

// Whether every thread of the block waits in the same place.
static bool all(const Block& of, State state) {
    const Place place = of.threads[0].place;
    for (const Thread& t : of.threads)
        if (t.state != state || (state != returned && !same(t.place, place))) return false;
    return true;
}

static void release(Block& of) {
    for (Thread& t : of.threads) t.state = ready;
    of.ready = int(of.threads.size());
}

static void report_divergence() {
    static const char* const places[] = {"can run", "at __syncthreads()", "", "at grid_sync()", "returned"};
    static const char* const operations[] = {"at __syncwarp()", "at a shuffle", "at a vote"};
    char list[600] = "";
    size_t n = 0;
    std::vector<bool> told(block->threads.size());
    for (size_t i = 0; i < told.size() && n < sizeof list - 100; ++i) {
        const Thread& t = block->threads[i];
        const auto together = [&](const Thread& u) {
            if (u.state != t.state || t.state == returned) return u.state == t.state;
            if (t.state == at_warp && (u.operation != t.operation || u.mask != t.mask)) return false;
            return same(u.place, t.place);
        };
        if (told[i]) continue;
        int count = 0;
        for (size_t j = i; j < told.size(); ++j)
            if (together(block->threads[j])) told[j] = true, ++count;
        n += snprintf(list + n, sizeof list - n, "%s%d %s", n ? ", " : "", count,
                      t.state == at_warp ? operations[t.operation] : places[t.state]);
        if (t.state != returned) n += snprintf(list + n, sizeof list - n, " in %s", text(t.place));
        if (t.state == at_warp) n += snprintf(list + n, sizeof list - n, " with mask %#x", t.mask);
    }
    fail_block("divergent barrier: of %zu threads, %s", told.size(), list);
}

// Runs the current block until all its threads have returned or wait for the grid.
static void advance() {
    for (;;) {
        run_ready_threads();
        if (*error) return;
        if (release_warps()) continue;
        if (all(*block, returned) || all(*block, at_grid)) return;
        if (!all(*block, at_barrier)) return report_divergence();
        release(*block);
    }
}

// -- shared memory ----------------------------------------------------------------------------------------------------

// Static shared memory is the thread-local storage of the kernel's library: the only way to get hold of all of it,
// whatever functions and templates it is declared in.  `anchor` lies in it.
static char* statics;
static size_t statics_bytes;

static void find_statics(char* anchor) {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* inside) {
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                if (info->dlpi_phdr[i].p_type != PT_TLS || !info->dlpi_tls_data) continue;
                char* start = static_cast<char*>(info->dlpi_tls_data);
                const size_t bytes = info->dlpi_phdr[i].p_memsz;
                if (inside < start || inside >= start + bytes) continue;
                statics = start;
                statics_bytes = bytes;
                return 1;
            }
            return 0;
        },
        anchor);
}

static void enter(Block& next) {
    if (launch->cooperative && block != &next) {
        if (block) memcpy(block->statics.data(), statics, statics_bytes);
        memcpy(statics, next.statics.data(), statics_bytes);
    }
    block = &next;
    blockIdx = next.index;
    dynamic_shared = next.dynamic;
}

// All shared memory is poison before a block begins: bytes of ones, NaN or -1.
static bool begin(Block& next, unsigned number) {
    next.index = {number % gridDim.x, number / gridDim.x % gridDim.y, number / gridDim.x / gridDim.y};
    next.threads.resize(thread_order.size());
    for (unsigned i = 0; i < next.threads.size(); ++i) {
        Thread& t = next.threads[i];
        t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        t.state = ready;
        t.fiber = nullptr;
        t.groups = 0;
        t.copies.clear();
    }
    next.ready = int(next.threads.size());
    if (!next.dynamic) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, shared_limit + margin, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) return false;
        next.dynamic = static_cast<char*>(memory);
    }
#ifdef EMULATED_SANITIZE
    __asan_unpoison_memory_region(next.dynamic, shared_limit + margin);
#endif
    memset(next.dynamic, 0xff, launch->shared_bytes + margin);
#ifdef EMULATED_SANITIZE
    __asan_poison_memory_region(next.dynamic + launch->shared_bytes, shared_limit + margin - launch->shared_bytes);
#endif
    if (launch->cooperative)
        next.statics.assign(statics_bytes, char(0xff));
    else
        memset(statics, 0xff, statics_bytes);
    return true;
}

static void check_margin() {
#ifndef EMULATED_SANITIZE  // it is told at once
    const char* end = block->dynamic + launch->shared_bytes;
    if (!std::all_of(end, end + margin, [](char c) { return c == char(0xff); }))
        fail_block("writes past its %u bytes of dynamic shared memory", launch->shared_bytes);
#endif
}

static bool is_shared(const char* p, int size) {
    const auto in = [&](const char* start, size_t bytes) { return p >= start && p + size <= start + bytes; };
    return in(block->dynamic, launch->shared_bytes) || in(statics, statics_bytes);
}

void copy_async(void* shared, const void* global, int size, int bytes, Place place) {
    if (!is_shared(static_cast<char*>(shared), size)) fail("copy_async_%d not to shared memory in %s", size, text(place));
    if (reinterpret_cast<uintptr_t>(shared) % size || reinterpret_cast<uintptr_t>(global) % size)
        fail("copy_async_%d of unaligned addresses in %s", size, text(place));
    if (bytes < 0 || bytes > size) fail("copy_async_%d of %d bytes in %s", size, bytes, text(place));
    memset(shared, 0xff, size);
    thread->copies.push_back({shared, global, size, bytes, thread->groups});
}

void copy_async_commit() { ++thread->groups; }

void copy_async_wait(int pending) {
    auto& copies = thread->copies;
    const auto arrives = [=](const Copy& c) {
        if (c.group >= thread->groups - pending) return false;
        memset(c.to, 0, c.size);
        memcpy(c.to, c.from, c.bytes);
        return true;
    };
    copies.erase(std::remove_if(copies.begin(), copies.end(), arrives), copies.end());
}

// -- launches ---------------------------------------------------------------------------------------------------------

static void run_blocks() {
    for (unsigned number : block_order) {
        if (!begin(blocks[0], number)) return fail_block("no memory");
        enter(blocks[0]);
        advance();
        if (!*error && !all(*block, returned)) report_divergence();
        if (!*error) check_margin();
        if (*error) return;
    }
}

static void run_cooperative() {
    const size_t count = block_order.size();
    for (unsigned number = 0; number < count; ++number)
        if (!begin(blocks[number], number)) return fail_block("no memory");
    for (;;) {
        arrange(block_order);
        size_t done = 0;
        for (unsigned number : block_order) {
            enter(blocks[number]);
            advance();
            if (!*error && all(*block, returned)) check_margin(), ++done;
            if (*error) return;
        }
        if (done == count) return;
        if (done) return fail_block("divergent grid_sync(): %zu of %zu blocks have returned", done, count);
        const Place place = block->threads[0].place;
        for (size_t i = 0; i < count; ++i)
            if (!same(blocks[i].threads[0].place, place))
                return fail_block("divergent grid_sync(): not all blocks wait in %s", text(place));
        for (size_t i = 0; i < count; ++i) release(blocks[i]);
    }
}

const char* run(const Kernel& what, const Launch& how, void** arguments, const size_t* sizes, size_t count) {
    if (count != what.parameters) {
        const char* format = "kernel '%s' has %zu parameters, got %zu arguments";
        snprintf(error, sizeof error, format, what.name, what.parameters, count);
        return error;
    }
    for (size_t i = 0; i < count; ++i) {
        if (sizes[i] == what.sizes[i]) continue;
        const char* format = "kernel '%s': parameter %zu has %zu bytes, the argument %zu";
        snprintf(error, sizeof error, format, what.name, i, what.sizes[i], sizes[i]);
        return error;
    }
    launch = &how;
    kernel = &what;
    kernel_arguments = arguments;
    gridDim = {how.grid[0], how.grid[1], how.grid[2]};
    blockDim = {how.block[0], how.block[1], how.block[2]};
    random_state = how.seed * 0x9e3779b97f4a7c15u | 1;
    *error = 0;
    block = nullptr;
    find_statics(what.anchor());
    count_up_or_down(thread_order, size_t(blockDim.x) * blockDim.y * blockDim.z);
    count_up_or_down(block_order, size_t(gridDim.x) * gridDim.y * gridDim.z);
    arrange(block_order);
    blocks.resize(std::max(blocks.size(), size_t(1)));
    if (how.cooperative) blocks.resize(std::max(blocks.size(), block_order.size()));
    how.cooperative ? run_cooperative() : run_blocks();
    if (!*error) return nullptr;
    for (Fiber* fiber : fibers) renew(*fiber);
    idle_fibers = fibers;
    return error;
}

}  // namespace emulated
