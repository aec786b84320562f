// Threads that take part in a kernel's call without Python: the caller's range is cut into parts, and whoever is free
// takes the next one.
//
// To wake a Python thread, and to take the GIL again, costs as much as a kernel of half a million numbers. These threads
// look for work for a little while after they had some, and sleep after that. The caller never waits for one of them to
// begin: what none has taken it does itself, and so loses nothing where the cores are busy.
//
// There is one job at a time. `ticket` holds its number, how many parts it has, and the next one to be taken; whoever
// counts it up has taken that part. A job's other fields are only read by those who have, and it does not end before
// they are done.
#include "array.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <thread>

namespace {

struct Crew {
    std::atomic<uint64_t> ticket{0};  // 32 bits of a job's number, 16 of its parts, 16 of the next part
    std::atomic<long> unfinished{0};  // parts
    Call call;
    void* context;
    long n;
    std::atomic<int> members{0}, alive{0}, sleeping{0};
    std::atomic<int> core{-1};  // the one that the caller runs on
    std::mutex mutex, one_job;
    std::condition_variable awake;
};

// Never destroyed: its threads run until the process ends. A forked child has none of them, and gets a crew of its own.
Crew* the_crew = new Crew;
const int prepared = pthread_atfork(nullptr, nullptr, [] { the_crew = new Crew; });

constexpr long MOST_PARTS = 0xffff;
constexpr auto PATIENCE = std::chrono::microseconds(150);

long parts_of(uint64_t ticket) { return ticket >> 16 & MOST_PARTS; }
long next_of(uint64_t ticket) { return ticket & MOST_PARTS; }

// Take a part and do it; false if there is none to be taken.
bool take(Crew& c) {
    uint64_t ticket = c.ticket.load(std::memory_order_acquire);
    do {
        if (next_of(ticket) >= parts_of(ticket)) return false;
    } while (!c.ticket.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire));
    long part = next_of(ticket), parts = parts_of(ticket);
    c.call(c.context, c.n * part / parts, c.n * (part + 1) / parts);
    c.unfinished.fetch_sub(1, std::memory_order_release);
    return true;
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A thread that was woken on the caller's core would run only when the caller does not: then it goes to another one.
void leave_core_of_caller(const Crew& c) {
#if defined(__linux__)
    cpu_set_t allowed, others;
    if (sched_getcpu() != c.core.load() || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(c.core.load(), &others);
    if (!CPU_COUNT(&others)) return;
    sched_setaffinity(0, sizeof others, &others);
    sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

void note_core(Crew& c) {
#if defined(__linux__)
    c.core.store(sched_getcpu(), std::memory_order_relaxed);
#endif
}

void work(Crew& c, int number) {
    while (number < c.members.load(std::memory_order_relaxed)) {
        auto idle_since = std::chrono::steady_clock::now();
        uint64_t seen;
        do {
            while (take(c)) idle_since = std::chrono::steady_clock::now();
            for (int i = 0; i < 64; i++) relax();
            seen = c.ticket.load(std::memory_order_acquire);
        } while (next_of(seen) < parts_of(seen) || std::chrono::steady_clock::now() - idle_since < PATIENCE);
        std::unique_lock<std::mutex> lock(c.mutex);
        c.sleeping++;
        c.awake.wait(lock, [&] { return c.ticket.load() != seen || number >= c.members.load(); });
        c.sleeping--;
        lock.unlock();
        leave_core_of_caller(c);
    }
    c.alive--;
}

}  // namespace

// Make the crew one of so many threads, beside the caller's.
KERNEL void crew_resize(long threads) {
    Crew& c = *the_crew;
    std::lock_guard<std::mutex> alone(c.one_job);
    int before = c.members.exchange(int(threads));
    while (c.alive.load() > threads) {  // for those who are to leave
        std::lock_guard<std::mutex>(c.mutex), c.awake.notify_all();
        std::this_thread::yield();
    }
    for (int number = before; number < threads; number++) {
        c.alive++;
        std::thread(work, std::ref(c), number).detach();
    }
}

// Call for the ranges that together make range(n), cut into so many parts: what `gn_divide` of array.h asks for.
// wake: whether it is worth waking threads that sleep.
extern "C" __attribute__((visibility("default"))) void crew_divide(Call call, void* context, long n, long parts, int wake) {
    Crew& c = *the_crew;
    if (!wake && c.sleeping.load() == c.members.load()) return call(context, 0, n);
    std::unique_lock<std::mutex> alone(c.one_job, std::try_to_lock);
    if (!alone || parts < 2 || parts > MOST_PARTS) return call(context, 0, n);
    c.call = call;
    c.context = context;
    c.n = n;
    c.unfinished.store(parts, std::memory_order_relaxed);
    note_core(c);
    uint64_t job = (c.ticket.load(std::memory_order_relaxed) >> 32) + 1;
    c.ticket.store(job << 32 | uint64_t(parts) << 16);
    if (c.sleeping.load()) c.awake.notify_all();  // one that is just falling asleep may miss it: then it is not needed
    while (take(c)) continue;
    for (int i = 0; c.unfinished.load(std::memory_order_acquire); i++) {
        if (i < 2000) relax();
        else std::this_thread::yield();  // who has the last part may be waiting for this core
    }
}
