// Work shared between the threads of one rank.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace gantry {

// A borrowed callable `void(int64_t)`. It does not allocate, so it may be used on the step path.
class TaskRef {
 public:
  template <typename Callable>
    requires std::is_invocable_v<Callable&, int64_t>
  TaskRef(Callable&& callable)  // NOLINT: made from a lambda at the call
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, int64_t index) {
          (*static_cast<std::remove_reference_t<Callable>*>(object))(index);
        }) {}
  void operator()(int64_t index) const { call_(object_, index); }

 private:
  void* object_;
  void (*call_)(void*, int64_t);
};

// Calls task(0) ... task(count - 1), each once, on at most `thread_count` threads with the caller among them; returns when
// all are done. Indices are dealt out in equal contiguous runs, so the same call touches the same data from the same
// thread. Tasks must not throw and must not call ParallelFor. The threads are OpenMP's, which oneDNN shares.
void ParallelFor(int thread_count, int64_t count, TaskRef task);

}  // namespace gantry
