// The runtime of the emulated device: runs a grid of blocks, one fiber per CUDA thread. See emulator.h.
//
// A block's fibers are resumed in turn, each until it waits. What a fiber waits for is counted at the moment of its
// arrival; the last one of a barrier or collective makes all of them ready again. When nobody is ready and somebody has
// not returned, the kernel is wrong, and what every thread waits for is the explanation.
//
// ThreadSanitizer sees fibers as threads. Switching between them orders nothing; only real barriers do. The blocks of a
// grid are not ordered either, so the memory they use one after another (shared memory, stacks) is made unknown to it
// again before each block. This file itself is compiled without instrumentation.
#include "emulator.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#undef assert
#undef __noinline__

#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#ifdef GN_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef GN_THREAD_SANITIZER
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
void __tsan_java_alloc(uintptr_t memory, uintptr_t size);
void __tsan_java_free(uintptr_t memory, uintptr_t size);
}
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

// The one dynamic shared array of all kernels, and behind it bytes that nobody may touch.
__attribute__((aligned(1024))) thread_local unsigned char gn_shared[gn::MAX_SHARED + gn::GUARD];

namespace gn {
namespace {

// --- Stacks and switching between them

#if defined(GN_ADDRESS_SANITIZER) || defined(GN_THREAD_SANITIZER)
constexpr size_t STACK = 512 << 10;
#else
constexpr size_t STACK = 128 << 10;
#endif
// Whether bytes around memory are checked after each block or launch.
#ifdef GN_ADDRESS_SANITIZER
constexpr bool GUARDED = false;  // AddressSanitizer sees more, if what must not be touched follows immediately
#else
constexpr bool GUARDED = true;
#endif
constexpr size_t PAGE = 4096;
constexpr unsigned STATIC_SHARED = 1u << 28;  // the shared address where static variables begin
constexpr size_t ARENA = size_t(1) << 30;     // address space for gn::storage; pages are taken as they are touched
constexpr int IDLE_ROUNDS = 10000;            // in which threads do nothing but spin, until they are given up
constexpr unsigned BARRIERS = 16;

enum State { READY, SPINNING, AT_BARRIER, AT_NAMED_BARRIER, IN_COLLECTIVE, RETURNED };

struct Collective;

struct Piece {
    const void* tag;
    void* memory;
};

struct Fiber : Thread {
    State state;
    Place place;       // where it waits
    int number;        // of the named barrier
    unsigned mask;     // of the collective
    const char* what;  // the instruction
    int atomics;       // since it was resumed
    Collective* held;  // the collective whose slots it may be reading
    std::vector<Piece> pieces;
    unsigned char* stack;
#ifdef __x86_64__
    void* top;  // the stack pointer while it is not running
#else
    ucontext_t context;
#endif
#ifdef GN_ADDRESS_SANITIZER
    void* fake_stack;
#endif
#ifdef GN_THREAD_SANITIZER
    void* sanitizers[2];  // what ThreadSanitizer knows it by, in every other block
#endif
};

// A warp collective under way, or whose values are still being read.
struct Collective {
    unsigned mask, arrived, present, readers;
    bool complete;
    const char* what;
    Place place;
    alignas(8) char object[8];  // for happens-before edges
    alignas(64) unsigned char slots[WARP * SLOT];
};

struct NamedBarrier {
    int expected, arrived, generation;
};

// Everything of the launch that is running; there is one at a time.
struct Launch {
    void (*body)(void*);
    void* context;
    Options options;
    int threads, warps;
    unsigned char* static_begin;
    size_t static_size;
    std::string error;

    // The running block
    int returned, at_barrier, holding, total_holding, generation;
    unsigned returned_lanes[MAX_THREADS / WARP];  // those that a small block does not have, too
    Place barrier_place;
    NamedBarrier named[BARRIERS];
    std::vector<Piece> pieces;
    size_t arena_used;
} launch;

Fiber* fibers;  // MAX_THREADS of them
unsigned char* arena;
unsigned char* stacks;
// Each warp's collectives. A lane holds one at most, and asks for another one, so there are never more.
struct Collectives {
    Collective* all;  // WARP + 1 of them
    int used;         // how many of them were in use at some time
    Collective* begin() { return all; }
    Collective* end() { return all + used; }
} collectives[MAX_THREADS / WARP];
unsigned long long events;  // what other threads may be waiting for: changes whenever any of it happens

#ifdef __x86_64__
void* scheduler_top;
extern "C" void gn_switch(void** save, void* load);
asm(R"(
.text
.type gn_switch, @function
gn_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size gn_switch, .-gn_switch
)");
#else
ucontext_t scheduler_context;
#endif

#ifdef GN_ADDRESS_SANITIZER
const void* scheduler_stack;
size_t scheduler_stack_size;
#endif

// What fibers synchronise through, for ThreadSanitizer. Barriers have one object for odd and one for even rounds: with
// one alone, a thread would seem ordered after what others did since that barrier.
char launch_begins, launch_ends, fence_object;
struct alignas(8) BlockObjects {
    char barrier[2], named[BARRIERS][2];
} block_objects;

#ifdef GN_THREAD_SANITIZER
void* scheduler_sanitizer;
unsigned block_parity;
// Making one costs a third of a millisecond, so they are used again: not in the next block, which would make its
// threads seem ordered after this one's.
void*& sanitizer_of(Fiber* fiber) { return fiber->sanitizers[block_parity]; }

// Let ThreadSanitizer forget who used this memory.
void forget(void* memory, size_t size) {
    const auto begin = reinterpret_cast<uintptr_t>(memory) & ~uintptr_t(7);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + size + 7) & ~uintptr_t(7);
    if (begin == end) return;
    __tsan_java_free(begin, end - begin);
    __tsan_java_alloc(begin, end - begin);
}
// The same for large pieces of memory that hold no synchronisation objects.
void forget_accesses(void* memory, size_t size) {
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    __tsan_java_free(begin, 8);
    __tsan_java_alloc(begin, size);
}
#endif

Fiber* running() { return static_cast<Fiber*>(current); }

// From the running fiber back to the scheduler.
void leave(State state) {
    Fiber* self = running();
    self->state = state;
#ifdef GN_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(state == RETURNED ? nullptr : &self->fake_stack, scheduler_stack,
                                   scheduler_stack_size);
#endif
#ifdef GN_THREAD_SANITIZER
    __tsan_switch_to_fiber(scheduler_sanitizer, 1);
#endif
#ifdef __x86_64__
    gn_switch(&self->top, scheduler_top);
#else
    swapcontext(&self->context, &scheduler_context);
#endif
#ifdef GN_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void resume(Fiber* fiber) {
    current = fiber;
    fiber->atomics = 0;
#ifdef GN_ADDRESS_SANITIZER
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, fiber->stack + PAGE, STACK - PAGE);
#endif
#ifdef GN_THREAD_SANITIZER
    __tsan_switch_to_fiber(sanitizer_of(fiber), 1);
#endif
#ifdef __x86_64__
    gn_switch(&scheduler_top, fiber->top);
#else
    swapcontext(&scheduler_context, &fiber->context);
#endif
#ifdef GN_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// --- Errors

std::string at(Place place) {
    const char* name = place.file;
    for (const char* c = place.file; *c; c++)
        if (*c == '/') name = c + 1;
    return std::string(name) + ":" + std::to_string(place.line);
}

std::string block_name() {
    const uint3 b = block_index;
    return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
}

// Leave the running fiber for good; the scheduler sees that there is an error.
[[noreturn]] void give_up() {
    release(&launch_ends);
    leave(RETURNED);
    __builtin_unreachable();
}

// End the launch with an error that concerns the whole block.
[[noreturn]] void fail_block(const std::string& message) {
    launch.error = block_name() + ": " + message;
    give_up();
}

// End the launch with an error of the running thread.
[[noreturn]] void fail(const std::string& message, Place place) {
    const uint3 t = current->index;
    launch.error = block_name() + ", thread (" + std::to_string(t.x) + ", " + std::to_string(t.y) + ", " +
                   std::to_string(t.z) + "): " + message + " (" + at(place) + ")";
    give_up();
}

std::string hexadecimal(unsigned x) {
    char text[16];
    snprintf(text, sizeof text, "0x%08x", x);
    return text;
}

// What the threads that have not returned wait for.
std::string what_all_wait_for() {
    std::map<std::string, int> waiting;
    for (int i = 0; i < launch.threads; i++) {
        const Fiber& f = fibers[i];
        if (f.state == AT_BARRIER) waiting["at __syncthreads() (" + at(f.place) + ")"]++;
        if (f.state == AT_NAMED_BARRIER) {
            const NamedBarrier& b = launch.named[f.number];
            waiting["at named barrier " + std::to_string(f.number) + " (" + at(f.place) + "; " +
                    std::to_string(b.arrived) + " of " + std::to_string(b.expected) + " threads have come)"]++;
        }
        if (f.state == IN_COLLECTIVE)
            waiting[std::string("in ") + f.what + " with mask " + hexadecimal(f.mask) + " (" + at(f.place) + ")"]++;
        if (f.state == SPINNING) waiting["in a loop (" + at(f.place) + ")"]++;
    }
    std::string text;
    for (const auto& [where, count] : waiting)
        text += (text.empty() ? "" : ", ") + std::to_string(count) + (count == 1 ? " waits " : " wait ") + where;
    if (launch.returned) text += ", " + std::to_string(launch.returned) + " have returned";
    return text;
}

// --- Waiting

void check_barrier() {
    if (launch.at_barrier == 0 || launch.at_barrier + launch.returned < launch.threads) return;
    if (launch.returned)
        fail_block("__syncthreads() (" + at(launch.barrier_place) + ") was reached by " +
                   std::to_string(launch.at_barrier) + " of its " + std::to_string(launch.threads) +
                   " threads; the others have returned from the kernel");
    launch.total_holding = launch.holding;
    launch.holding = launch.at_barrier = 0;
    launch.generation ^= 1;
    for (int i = 0; i < launch.threads; i++)
        if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
}

// The fiber reads no collective's values any more.
void let_go(Fiber* fiber) {
    Collective* c = fiber->held;
    fiber->held = nullptr;
    if (c && --c->readers == 0) {
        c->arrived = 0;
        c->complete = false;
#ifdef GN_THREAD_SANITIZER
        forget(c->object, sizeof c->object);
#endif
    }
}

// Complete the warp's collectives whose lanes are all there.
void finish_collectives(int warp) {
    for (Collective& c : collectives[warp]) {
        if (c.arrived == 0 || c.complete || c.mask & ~(c.arrived | launch.returned_lanes[warp])) continue;
        c.complete = true;
        c.present = c.arrived;
        for (unsigned lane = 0; lane < WARP; lane++) {
            Fiber& f = fibers[warp * WARP + lane];
            if (c.arrived >> lane & 1u && f.state == IN_COLLECTIVE) f.state = READY;
        }
    }
}

// memcpy and memset, unseen by ThreadSanitizer, which sees those of the C library.
void copy_bytes(unsigned char* to, const void* from, size_t size) {
#ifdef GN_THREAD_SANITIZER
    const auto* source = static_cast<const volatile unsigned char*>(from);
    for (size_t i = 0; i < size; i++) to[i] = source[i];
#else
    memcpy(to, from, size);
#endif
}
void poison_bytes(unsigned char* to, size_t size) {
#ifdef GN_THREAD_SANITIZER
    for (size_t i = 0; i < size; i++) static_cast<volatile unsigned char*>(to)[i] = 0xff;
#else
    memset(to, 0xff, size);
#endif
}

// The first function on a fiber's stack.
void enter() {
#ifdef GN_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    acquire(&launch_begins);
    launch.body(launch.context);
    release(&launch_ends);
    Fiber* self = running();
    const int warp = self->linear / WARP;
    launch.returned++;
    launch.returned_lanes[warp] |= 1u << self->linear % WARP;
    self->state = RETURNED;
    let_go(self);
    finish_collectives(warp);
    check_barrier();
    leave(RETURNED);
    __builtin_unreachable();
}

// --- Running a block

unsigned long long next_random(unsigned long long& state) {  // splitmix64
    unsigned long long x = state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

void shuffle(std::vector<unsigned>& order, unsigned long long& state) {
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[next_random(state) % i]);
}

std::vector<unsigned> sequence(size_t size) {
    std::vector<unsigned> order(size);
    for (size_t i = 0; i < size; i++) order[i] = unsigned(launch.options.order == 1 ? size - 1 - i : i);
    return order;
}

void prepare_fiber(int i) {
    Fiber& f = fibers[i];
    const unsigned x = block_size.x, y = block_size.y;
    f.index = {i % x, i / x % y, i / (x * y)};
    f.linear = i;
    f.state = READY;
    f.held = nullptr;
    f.pieces.clear();
    f.stack = stacks + i * STACK;
#ifdef __x86_64__
    void** top = reinterpret_cast<void**>(f.stack + STACK);
    *--top = nullptr;  // where a call would have left its return address: aligns the stack
    *--top = reinterpret_cast<void*>(&enter);
    for (int k = 0; k < 6; k++) *--top = nullptr;  // the registers that gn_switch restores
    f.top = top;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack + PAGE;
    f.context.uc_stack.ss_size = STACK - PAGE;
    f.context.uc_link = nullptr;
    makecontext(&f.context, &enter, 0);
#endif
#ifdef GN_ADDRESS_SANITIZER
    f.fake_stack = nullptr;
#endif
#ifdef GN_THREAD_SANITIZER
    if (!sanitizer_of(&f)) sanitizer_of(&f) = __tsan_create_fiber(0);
#endif
}

void prepare_block() {
    const unsigned shared = launch.options.shared;
#ifdef GN_THREAD_SANITIZER
    block_parity ^= 1;
    forget(&block_objects, sizeof block_objects);
    forget(gn_shared, sizeof gn_shared);
    forget(launch.static_begin, launch.static_size);
    forget(arena, launch.arena_used);
    forget_accesses(stacks, launch.threads * STACK);
#endif
    poison_bytes(gn_shared, GUARDED ? shared + GUARD : shared);
    poison_bytes(launch.static_begin, launch.static_size);
    launch.returned = launch.at_barrier = launch.holding = 0;
    memset(launch.named, 0, sizeof launch.named);
    launch.pieces.clear();
    launch.arena_used = 0;
    for (int w = 0; w < launch.warps; w++) {
        const int lanes = std::min<int>(launch.threads - w * WARP, WARP);
        launch.returned_lanes[w] = lanes == WARP ? 0u : ~0u << lanes;
        for (Collective& c : collectives[w]) c.arrived = c.readers = 0, c.complete = false;
    }
    for (int i = 0; i < launch.threads; i++) prepare_fiber(i);
}

void check_guard() {
    if (!GUARDED) return;
    const unsigned char* const end = gn_shared + launch.options.shared;
    unsigned i = 0;
    while (i < GUARD && end[i] == 0xff) i++;
    if (i < GUARD)
        launch.error = block_name() + ": wrote at byte " + std::to_string(launch.options.shared + i) + " of its " +
                       std::to_string(launch.options.shared) + " bytes of dynamic shared memory";
}

void run_block(std::vector<unsigned>& order, unsigned long long& random) {
    prepare_block();
    int idle = 0;
    while (launch.returned < launch.threads && launch.error.empty()) {
        if (launch.options.order == 2) shuffle(order, random);
        bool any = false, went_on = false;
        const unsigned long long before = events;
        for (unsigned i : order) {
            Fiber* f = &fibers[i];
            if (f->state != READY && f->state != SPINNING) continue;
            any = true;
            const bool spins = f->state == SPINNING;
            resume(f);
            if (!launch.error.empty()) break;
            went_on |= !spins || f->state != SPINNING;
        }
        idle = went_on || events != before ? 0 : idle + 1;
        if (launch.error.empty() && launch.returned < launch.threads && (!any || idle > IDLE_ROUNDS))
            launch.error = block_name() + ": its threads wait for each other forever: " + what_all_wait_for();
    }
    current = nullptr;
    if (launch.error.empty()) check_guard();
#ifdef GN_THREAD_SANITIZER
    for (int i = 0; i < launch.threads && !launch.error.empty(); i++) {  // whatever was given up is over
        __tsan_switch_to_fiber(sanitizer_of(&fibers[i]), 1);
        __tsan_switch_to_fiber(scheduler_sanitizer, 0);
        __tsan_destroy_fiber(sanitizer_of(&fibers[i]));
        sanitizer_of(&fibers[i]) = nullptr;
    }
#endif
}

void* reserve(size_t size) {
    return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

// --- Global memory

// What precedes an array: it is in a list of all, so that every launch can look whether what is around was touched.
struct Allocation {
    Allocation *previous, *next;
    size_t size;
};
constexpr size_t AROUND = 256;  // bytes before and behind an array that nobody may touch
static_assert(sizeof(Allocation) <= AROUND);
std::mutex allocations_mutex;
Allocation* allocations;

void check_allocations() {
    static const std::vector<unsigned char> poison(AROUND, 0xff);
    const unsigned char* const untouched = poison.data();
    const std::lock_guard<std::mutex> lock(allocations_mutex);
    for (Allocation* a = allocations; a; a = a->next) {
        unsigned char* const begin = reinterpret_cast<unsigned char*>(a) + 2 * AROUND;
        for (unsigned char* around : {begin - AROUND, begin + a->size}) {
            if (memcmp(around, untouched, AROUND) == 0) continue;
            const unsigned char* first = around;
            while (*first == 0xff) first++;
            if (launch.error.empty())
                launch.error = "wrote at byte " + std::to_string(first - begin) + " of an array of " +
                               std::to_string(a->size) + " bytes";
            memset(around, 0xff, AROUND);
        }
    }
}

bool prepare_process() {
    if (fibers) return true;
    void* a = reserve(ARENA);
    void* s = reserve(STACK * MAX_THREADS);
    void* c = reserve(sizeof(Collective) * (WARP + 1) * (MAX_THREADS / WARP));
    if (a == MAP_FAILED || s == MAP_FAILED || c == MAP_FAILED) return false;
    for (unsigned w = 0; w < MAX_THREADS / WARP; w++)
        collectives[w] = {static_cast<Collective*>(c) + w * (WARP + 1), 0};
    arena = static_cast<unsigned char*>(a);
    stacks = static_cast<unsigned char*>(s);
    for (unsigned i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * STACK, PAGE, PROT_NONE);  // stops an overflow
    fibers = new Fiber[MAX_THREADS]();
    return true;
}

// Find the library's thread-local segment: the one that holds `variables.member`.
void find_static_shared(StaticShared& variables) {
    variables.is_known = true;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* context) {
            StaticShared& v = *static_cast<StaticShared*>(context);
            const auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
            if (begin == nullptr || v.member < begin) return 0;
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto& header = info->dlpi_phdr[i];
                if (header.p_type != PT_TLS || v.member >= begin + header.p_memsz) continue;
                v.offset = begin - v.member;
                v.size = header.p_memsz;
                return 1;
            }
            return 0;
        },
        &variables);
}

}  // namespace

// --- What emulator.h declares

Thread* current;
uint3 block_index;
dim3 block_size, grid_size;
int is_late;
void acquire([[maybe_unused]] void* object) {
#ifdef GN_THREAD_SANITIZER
    __tsan_acquire(object);
#endif
}

void release([[maybe_unused]] void* object) {
    events++;
#ifdef GN_THREAD_SANITIZER
    __tsan_release(object);
#endif
}

void fence() {
    acquire(&fence_object);
#ifdef GN_THREAD_SANITIZER
    __tsan_release(&fence_object);
#endif
}

void trap(const char* message, const char* file, int line) { fail(message, {file, line}); }

void pause(const char* file, int line) {
    running()->place = {file, line};
    leave(SPINNING);
}

int barrier(bool predicate, Place place) {
    Fiber* self = running();
    if (launch.at_barrier == 0) {
        launch.barrier_place = place;
    } else if (launch.barrier_place.line != place.line || strcmp(launch.barrier_place.file, place.file) != 0) {
        fail("other threads of its block wait at the __syncthreads() of " + at(launch.barrier_place) +
                 ", this one is at another",
             place);
    }
    const int generation = launch.generation;
    self->place = place;
    self->state = AT_BARRIER;
    launch.at_barrier++;
    launch.holding += predicate;
    release(&block_objects.barrier[generation]);
    check_barrier();
    leave(self->state);
    acquire(&block_objects.barrier[generation]);
    return launch.total_holding;
}

void named_barrier(int number, int count, bool waits, Place place) {
    Fiber* self = running();
    if (number < 1 || number >= int(BARRIERS))
        fail("named barriers have the numbers 1 to 15, not " + std::to_string(number), place);
    if (count <= 0 || count % WARP)
        fail("a named barrier counts a multiple of 32 threads, not " + std::to_string(count), place);
    NamedBarrier& b = launch.named[number];
    if (b.arrived && b.expected != count)
        fail("named barrier " + std::to_string(number) + " is to count " + std::to_string(count) +
                 " threads here, and other threads wait there for " + std::to_string(b.expected),
             place);
    const int generation = b.generation & 1;
    b.expected = count;
    b.arrived++;
    events++;
    release(&block_objects.named[number][generation]);
    self->place = place;
    self->number = number;
    self->state = waits ? AT_NAMED_BARRIER : READY;
    if (b.arrived == count) {
        b.arrived = 0;
        b.generation++;
        for (int i = 0; i < launch.threads; i++)
            if (fibers[i].state == AT_NAMED_BARRIER && fibers[i].number == number) fibers[i].state = READY;
    }
    if (!waits) return;
    leave(self->state);
    acquire(&block_objects.named[number][generation]);
}

const unsigned char* collect(unsigned mask, const void* value, unsigned size, bool orders_memory, const char* what,
                             Place place, unsigned* present) {
    Fiber* self = running();
    const int warp = self->linear / WARP;
    const unsigned lane = self->linear % WARP;
    let_go(self);
    if (!(mask >> lane & 1u))
        fail(std::string(what) + " with mask " + hexadecimal(mask) + ", which leaves out the calling lane " +
                 std::to_string(lane),
             place);
    Collective* mine = nullptr;
    Collective* unused = nullptr;
    for (Collective& c : collectives[warp]) {
        if (c.arrived == 0) unused = &c;
        if (c.arrived == 0 || c.complete || strcmp(c.what, what) != 0) continue;
        const bool here = c.place.line == place.line && strcmp(c.place.file, place.file) == 0;
        if (c.mask == mask && (here || orders_memory)) mine = &c;
        if (c.mask != mask && here && c.mask >> lane & 1u)
            fail(std::string(what) + " with mask " + hexadecimal(mask) + ", while other lanes wait there with " +
                     hexadecimal(c.mask),
                 place);
    }
    if (mine == nullptr) {
        mine = unused ? unused : &collectives[warp].all[collectives[warp].used++];
        mine->mask = mask;
        mine->what = what;
        mine->place = place;
        poison_bytes(mine->slots, size * WARP);
    }
    copy_bytes(mine->slots + lane * size, value, size);
    mine->arrived |= 1u << lane;
    mine->readers++;
    events++;
    self->held = mine;
    self->mask = mask;
    self->what = what;
    self->place = place;
    self->state = IN_COLLECTIVE;
    if (orders_memory) release(mine->object);
    finish_collectives(warp);
    leave(self->state);
    if (orders_memory) acquire(mine->object);
    *present = mine->present;
    return mine->slots;
}

void atomic_step(Place place) {
    Fiber* self = running();
    if (++self->atomics > 100) pause(place.file, place.line);
}

unsigned shared_address(const void* pointer) {
    const auto* p = static_cast<const unsigned char*>(pointer);
    if (p >= gn_shared && p < gn_shared + sizeof gn_shared) return unsigned(p - gn_shared);
    if (p >= launch.static_begin && p < launch.static_begin + launch.static_size)
        return STATIC_SHARED + unsigned(p - launch.static_begin);
    trap("a pointer that is none to shared memory is used as one");
}

unsigned char* shared_at(unsigned address) {
    if (address < sizeof gn_shared) return gn_shared + address;
    if (address >= STATIC_SHARED && address - STATIC_SHARED < launch.static_size)
        return launch.static_begin + (address - STATIC_SHARED);
    trap("an address that is none of shared memory is used as one");
}

void* storage(const void* tag, unsigned size, unsigned alignment, bool per_block, bool* is_new) {
    std::vector<Piece>& pieces = per_block ? launch.pieces : running()->pieces;
    *is_new = false;
    for (const Piece& piece : pieces)
        if (piece.tag == tag) return piece.memory;
    const size_t a = std::max(alignment, 16u), begin = (launch.arena_used + a - 1) / a * a;
    if (begin + size > ARENA) trap("the state of emulated instructions takes more than 1 GiB in a block");
    launch.arena_used = begin + size;
    *is_new = true;
    pieces.push_back({tag, arena + begin});
    return arena + begin;
}

void describe_mismatch(char* error, size_t error_size, int given, int expected, int index, size_t given_size,
                       size_t expected_size) {
    if (given != expected)
        snprintf(error, error_size, "launched with %d parameters; it takes %d", given, expected);
    else
        snprintf(error, error_size, "parameter %d (counted from 0) was given as %zu bytes; it has %zu", index,
                 given_size, expected_size);
}

int run(void (*body)(void*), void* context, const Options& options, StaticShared& variables, char* error,
        size_t error_size) {
    if (!prepare_process()) {
        snprintf(error, error_size, "no address space for the stacks of the emulated threads");
        return 1;
    }
    if (!variables.is_known) find_static_shared(variables);
    launch.body = body;
    launch.context = context;
    launch.options = options;
    launch.static_begin = variables.member + variables.offset;
    launch.static_size = variables.size;
    launch.error.clear();
    launch.generation = 0;
    grid_size = {options.grid[0], options.grid[1], options.grid[2]};
    block_size = {options.block[0], options.block[1], options.block[2]};
    launch.threads = block_size.x * block_size.y * block_size.z;
    launch.warps = (launch.threads + WARP - 1) / WARP;
    is_late = options.late;
#ifdef GN_ADDRESS_SANITIZER
    __asan_poison_memory_region(gn_shared + options.shared, sizeof gn_shared - options.shared);
#endif
#ifdef GN_THREAD_SANITIZER
    scheduler_sanitizer = __tsan_get_current_fiber();
    __tsan_release(&launch_begins);
#endif
    unsigned long long random = options.seed;
    std::vector<unsigned> threads = sequence(launch.threads);
    std::vector<unsigned> blocks = sequence(size_t(grid_size.x) * grid_size.y * grid_size.z);
    if (options.order == 2) shuffle(blocks, random);
    for (unsigned i : blocks) {
        block_index = {i % grid_size.x, i / grid_size.x % grid_size.y, i / grid_size.x / grid_size.y};
        run_block(threads, random);
        if (!launch.error.empty()) break;
    }
#ifdef GN_THREAD_SANITIZER
    __tsan_acquire(&launch_ends);
#endif
#ifdef GN_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(gn_shared, sizeof gn_shared);
    if (!launch.error.empty()) __asan_unpoison_memory_region(stacks, STACK * launch.threads);  // given up
#endif
    check_allocations();
    if (launch.error.empty()) return 0;
    snprintf(error, error_size, "%s", launch.error.c_str());
    return 1;
}

}  // namespace gn

// --- What Python calls

// New memory of `size` bytes at a multiple of 64, all 0xFF; null where there is none.
extern "C" unsigned char* gn_allocate(size_t size) {
    using namespace gn;
    const size_t before = GUARDED ? 2 * AROUND : 0, total = before + size + (GUARDED ? AROUND : 0);
    void* memory;
    if (posix_memalign(&memory, 64, total ? total : 1)) return nullptr;
    memset(memory, 0xff, total);
    if (GUARDED) {
        const std::lock_guard<std::mutex> lock(allocations_mutex);
        auto* a = static_cast<Allocation*>(memory);
        *a = {nullptr, allocations, size};
        if (allocations) allocations->previous = a;
        allocations = a;
    }
    return static_cast<unsigned char*>(memory) + before;
}

extern "C" void gn_free(unsigned char* array) {
    using namespace gn;
    if (!GUARDED) return free(array);
    auto* a = reinterpret_cast<Allocation*>(array - 2 * AROUND);
    {
        const std::lock_guard<std::mutex> lock(allocations_mutex);
        (a->previous ? a->previous->next : allocations) = a->next;
        if (a->next) a->next->previous = a->previous;
    }
    free(a);
}
