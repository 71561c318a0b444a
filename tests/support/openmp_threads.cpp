// The few functions of GCC's OpenMP library that fanin's kernels call, made of std::thread and
// mutexes, which ThreadSanitizer understands. It does not see how libgomp's threads wait for each
// other, and would report all that they share. `nox -s sanitize` loads this in libgomp's place.
#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  explicit Team(unsigned n) : threads(n) {}
  const unsigned threads;
  std::mutex mutex;
  std::condition_variable all_came;
  unsigned waiting = 0, rounds = 0;
  unsigned singles = 0;       // how many `single` blocks have been taken
  std::map<int, long> loops;  // where each `for` goes on, by its number

  void barrier() {
    std::unique_lock<std::mutex> lock(mutex);
    const unsigned round = rounds;
    if (++waiting == threads) {
      waiting = 0;
      ++rounds;
      all_came.notify_all();
    }
    all_came.wait(lock, [&] { return rounds != round; });
  }
};

// What a thread is doing. Outside of teams it works alone.
struct ThreadState {
  Team *team = nullptr;
  unsigned number = 0, singles = 0;
  int loop = 0;
  long end = 0, step = 1, chunk = 1;
};
thread_local ThreadState state;
std::mutex critical;

bool take(long *begin, long *end) {
  std::lock_guard<std::mutex> lock(state.team->mutex);
  long &next = state.team->loops[state.loop];
  *begin = next;
  *end = std::min(next + state.chunk * state.step, state.end);
  next = *end;
  return *begin < *end;
}

}  // namespace

extern "C" {

int omp_get_max_threads() { return 4; }
int omp_get_thread_num() { return int(state.number); }
int omp_get_num_threads() { return state.team ? int(state.team->threads) : 1; }

void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned) {
  Team team(threads ? threads : 1);
  const auto member = [&](unsigned number) {
    const ThreadState outside = state;
    state = ThreadState();
    state.team = &team;
    state.number = number;
    work(data);
    state = outside;
  };
  std::vector<std::thread> others;
  for (unsigned n = 1; n < team.threads; ++n) others.emplace_back(member, n);
  member(0);
  for (std::thread &other : others) other.join();
}

void GOMP_barrier() {
  if (state.team) state.team->barrier();
}
bool GOMP_single_start() {
  std::lock_guard<std::mutex> lock(state.team->mutex);
  if (state.singles++ < state.team->singles) return false;
  ++state.team->singles;
  return true;
}
void GOMP_critical_name_start(void **) { critical.lock(); }
void GOMP_critical_name_end(void **) { critical.unlock(); }

bool GOMP_loop_nonmonotonic_dynamic_next(long *begin, long *end) { return take(begin, end); }
bool GOMP_loop_nonmonotonic_dynamic_start(long first, long last, long step, long chunk, long *begin,
                                          long *end) {
  ++state.loop;
  state.end = last;
  state.step = step;
  state.chunk = chunk;
  {
    std::lock_guard<std::mutex> lock(state.team->mutex);
    state.team->loops.emplace(state.loop, first);
  }
  return take(begin, end);
}
void GOMP_loop_end() { GOMP_barrier(); }
void GOMP_loop_end_nowait() {}

}  // extern "C"
