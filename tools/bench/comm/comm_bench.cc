// How fast ranks of this machine talk to each other: collectives, put and get, the start of a job, and how soon a loss
// is known.
//   comm_bench [--ranks 2] [--nodes 1 [--transport tcp|ucx]] [--rounds 5] [--json] [--only NAME] [--cross-memory] [--largest BYTES]
// --nodes: the ranks take themselves to be on so many machines. --only link: what links are measured by, all-reduce and
// compute at the same time, and an urgent exchange beside a long one (link.py runs that on shaped links).
// Every size is checked before it is timed. `us` is the median over rounds, `best_us` the fastest round. In a round
// each rank writes its buffer anew before every call ("dirty"), and the time that the writing takes by itself is
// subtracted. `floor_us` is the same sum over the same memory without any waiting for each other.

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/fabric.h"
#include "comm/job.h"
#include "comm/launcher.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "comm/reduce.h"
#include "memory/device.h"

namespace gantry {
namespace {

struct Options {
  int ranks = 2;
  int nodes = 1;
  int rounds = 5;
  bool json = false;
  std::string only;
  bool cross_memory = false;  // for memory outside the pool
  int64_t largest = int64_t{64} << 20;
};

using Clock = std::chrono::steady_clock;
double Microseconds(Clock::time_point from) {
  return std::chrono::duration<double, std::micro>(Clock::now() - from).count();
}

[[noreturn]] void Fail(std::string_view what) {
  std::fprintf(stderr, "comm_bench: %.*s\n", static_cast<int>(what.size()), what.data());
  std::exit(1);
}
void MustBeOk(const absl::Status& status) {
  if (!status.ok()) Fail(Message(status));
}

struct Timing {
  double median = 0, best = 0;
};
Timing Summarize(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front()};
}

// One rank of the benchmark.
class Bench {
 public:
  Bench(const Options& options, Fabric& fabric, std::byte* arena, int64_t arena_bytes)
      : options_(options), fabric_(fabric), world_(fabric.world()), arena_(arena), arena_bytes_(arena_bytes) {}

  void Run() {
    if (world_.rank() == 0 && !options_.json) {
      for (const std::string& line : fabric_.Describe()) std::printf("%s\n", line.c_str());
      std::printf("%-24s %5s %10s %12s %12s %12s %8s\n", "", "ranks", "bytes", "us", "best us", "floor us", "GB/s");
    }
    for (int64_t bytes = 8; bytes <= options_.largest; bytes *= bytes < 1024 ? 2 : 4) Sizes(bytes);
    PutAndGet();
  }

 private:
  bool Wants(std::string_view name) const { return options_.only.empty() || options_.only == name; }

  void Print(std::string_view name, int64_t bytes, Timing time, double floor_us) const {
    if (world_.rank() != 0) return;
    if (options_.json) {
      std::printf(
          "{\"name\": \"%s\", \"ranks\": %d, \"bytes\": %lld, \"us\": %.4g, \"best_us\": %.4g, \"floor_us\": %.4g}\n",
          std::string(name).c_str(), world_.size(), static_cast<long long>(bytes), time.median, time.best, floor_us);
    } else {
      std::printf("%-24s %5d %10lld %12.3f %12.3f %12.3f %8.2f\n", std::string(name).c_str(), world_.size(),
                  static_cast<long long>(bytes), time.median, time.best, floor_us,
                  static_cast<double>(bytes) / time.median * 1e-3);
    }
    std::fflush(stdout);
  }

  // The time of `call` without that of `dirty`, which goes before each.
  Timing Time(const std::function<void()>& dirty, const std::function<void()>& call, int64_t bytes) {
    const int repetitions =
        static_cast<int>(std::clamp<int64_t>((int64_t{16} << 20) / std::max<int64_t>(bytes, 1024), 3, 2000));
    std::vector<double> alone_samples, both_samples;
    for (int round = 0; round < options_.rounds + 1; ++round) {
      MustBeOk(world_.Barrier());
      Clock::time_point begin = Clock::now();
      for (int i = 0; i < repetitions; ++i) dirty();
      const double alone = Microseconds(begin);
      MustBeOk(world_.Barrier());
      begin = Clock::now();
      for (int i = 0; i < repetitions; ++i) {
        dirty();
        call();
      }
      const double both = Microseconds(begin);
      if (round == 0) continue;
      alone_samples.push_back(alone / repetitions);
      both_samples.push_back(both / repetitions);
    }
    // Apart, so that a disturbance of the one does not make the other look fast.
    const Timing alone = Summarize(std::move(alone_samples)), both = Summarize(std::move(both_samples));
    return {both.median - alone.median, both.best - alone.best};
  }

  void Sizes(int64_t bytes) {
    const int n = world_.size(), self = world_.rank();
    const int64_t count = bytes / 4, part = bytes / n / 4 * 4;
    auto* pool = reinterpret_cast<float*>(arena_);
    auto* second = reinterpret_cast<float*>(arena_ + arena_bytes_ / 2);
    if (private_.size() < static_cast<size_t>(count)) private_.resize(count);
    const auto fill = [count](float* data, float value) { std::fill_n(data, count, value); };
    const float sum = static_cast<float>(n * (n + 1) / 2);
    const auto check = [&](const float* data, int64_t length, float wanted, const char* what) {
      for (int64_t i = 0; i < length; ++i) {
        if (data[i] != wanted)
          Fail(absl::StrFormat("%s of %d bytes is wrong at %d: %g, should be %g", what, bytes, i, data[i], wanted));
      }
    };

    for (float* data : {pool, private_.data()}) {
      const char* name = data == pool ? "all_reduce" : "all_reduce_private";
      if (!Wants(name)) continue;
      const auto call = [&] { MustBeOk(world_.AllReduce(data, count, ElementType::kF32, ReduceOp::kSum).Wait()); };
      fill(data, static_cast<float>(self + 1));
      call();
      check(data, count, sum, name);
      double floor = 0;
      if (data == pool && SeesAll()) floor = Time([&] { fill(data, 1); }, [&] { SumSlice(count); }, bytes).median;
      Print(name, bytes, Time([&] { fill(data, 1); }, call, bytes), floor);
    }
    if (Wants("reduce_scatter") && part > 0) {
      const std::vector<int64_t> counts(n, part / 4);
      const auto call = [&] {
        MustBeOk(world_.ReduceScatter(pool, second, counts, ElementType::kF32, ReduceOp::kSum).Wait());
      };
      fill(pool, static_cast<float>(self + 1));
      call();
      check(second, part / 4, sum, "reduce_scatter");
      Print("reduce_scatter", bytes, Time([&] { fill(pool, 1); }, call, bytes), 0);
    }
    if (Wants("all_gather") && part > 0) {
      const std::vector<int64_t> parts(n, part);
      float* own = pool + self * (part / 4);
      const auto dirty = [&] { std::fill_n(own, part / 4, static_cast<float>(self + 1)); };
      const auto call = [&] { MustBeOk(world_.AllGather(own, pool, parts).Wait()); };
      dirty();
      call();
      for (int rank = 0; rank < n; ++rank)
        check(pool + rank * (part / 4), part / 4, static_cast<float>(rank + 1), "all_gather");
      Print("all_gather", bytes, Time(dirty, call, bytes), 0);
    }
    if (Wants("broadcast")) {
      const auto dirty = [&] {
        if (self == 0) fill(pool, 3);
      };
      const auto call = [&] { MustBeOk(world_.Broadcast(pool, bytes, 0).Wait()); };
      dirty();
      call();
      check(pool, count, 3, "broadcast");
      Print("broadcast", bytes, Time(dirty, call, bytes), 0);
    }
    if (Wants("all_to_all") && part > 0) {
      const std::vector<int64_t> parts(n, part);
      const auto call = [&] { MustBeOk(world_.AllToAll(pool, parts, second, parts).Wait()); };
      fill(pool, static_cast<float>(self + 1));
      call();
      for (int rank = 0; rank < n; ++rank)
        check(second + rank * (part / 4), part / 4, static_cast<float>(rank + 1), "all_to_all");
      Print("all_to_all", bytes, Time([&] { fill(pool, 1); }, call, bytes), 0);
    }
    if (Wants("exchange_halo") && bytes <= (1 << 20)) {
      const size_t face = static_cast<size_t>(bytes);
      const HaloExchange halo{.before = (self + n - 1) % n,
                              .behind = (self + 1) % n,
                              .to_before = {arena_, face},
                              .to_behind = {arena_ + face, face},
                              .from_before = {arena_ + arena_bytes_ / 2, face},
                              .from_behind = {arena_ + arena_bytes_ / 2 + face, face}};
      const auto dirty = [&] { std::fill_n(pool, count * 2, static_cast<float>(self + 1)); };
      const auto call = [&] { MustBeOk(world_.ExchangeHalo(std::span(&halo, 1)).Wait()); };
      dirty();
      call();
      check(reinterpret_cast<float*>(halo.from_before.data()), count, static_cast<float>(halo.before + 1),
            "exchange_halo");
      check(reinterpret_cast<float*>(halo.from_behind.data()), count, static_cast<float>(halo.behind + 1),
            "exchange_halo");
      Print("exchange_halo", bytes, Time(dirty, call, bytes), 0);
    }
    if (bytes == 8 && Wants("barrier")) Print("barrier", 0, Time([] {}, [&] { MustBeOk(world_.Barrier()); }, 0), 0);
  }

  bool SeesAll() const {
    for (int rank = 0; rank < world_.size(); ++rank) {
      if (fabric_.pool().data(rank, 0) == nullptr) return false;
    }
    return true;
  }

  // What an all-reduce must do at least: this rank's slice of everybody's memory, without waiting.
  void SumSlice(int64_t count) {
    const int n = world_.size(), self = world_.rank();
    const int64_t begin = count * self / n, length = count * (self + 1) / n - begin;
    std::vector<const std::byte*> from;
    std::vector<std::byte*> to;
    for (int rank = 0; rank < n; ++rank) {
      to.push_back(fabric_.pool().data(rank, 0) + 4 * begin);
      from.push_back(to.back());
    }
    ReduceElements(ElementType::kF32, ReduceOp::kSum, from, to, length);
  }

  // Rank 0 copies to and from rank 1, which sleeps.
  void PutAndGet() {
    if (world_.size() < 2) return;
    for (const int64_t bytes :
         {int64_t{8}, int64_t{4096}, int64_t{64} << 10, int64_t{1} << 20, int64_t{16} << 20, int64_t{64} << 20}) {
      if (bytes > options_.largest) continue;
      for (const bool put : {true, false}) {
        if (!Wants(put ? "put" : "get")) continue;
        MustBeOk(world_.Barrier());
        if (world_.rank() == 0) {
          Transport& transport = fabric_.transport(1);
          const GlobalAddress there = {1, 0, arena_bytes_ / 2};
          const size_t size = static_cast<size_t>(bytes);
          const auto call = [&] {
            MustBeOk(put ? transport.Put(there, {arena_, size}).Wait() : transport.Get({arena_, size}, there).Wait());
          };
          std::memset(arena_, 5, size);
          call();
          std::vector<std::byte> back(size);
          MustBeOk(transport.Get(back, there).Wait());
          if (std::memcmp(arena_, back.data(), size) != 0) Fail("put and get differ");
          const int repetitions = static_cast<int>(std::clamp<int64_t>((int64_t{64} << 20) / bytes, 3, 20000));
          std::vector<double> samples;
          for (int round = 0; round < options_.rounds + 1; ++round) {
            const Clock::time_point begin = Clock::now();
            for (int i = 0; i < repetitions; ++i) call();
            if (round > 0) samples.push_back(Microseconds(begin) / repetitions);
          }
          Print(put ? "put" : "get", bytes, Summarize(std::move(samples)), 0);
        }
        MustBeOk(world_.Barrier());
      }
    }
  }

  // Arithmetic on a few registers, so that it meets the exchange at the core alone.
  static double Compute(int64_t rounds) {
    double x = 1.0;
    for (int64_t i = 0; i < rounds; ++i) x = x * 1.0000001 + 1e-9;
    return x;
  }

 public:
  // hidden: how much of the all-reduce goes on behind compute that takes as long as it does by itself (as OSU's and
  // IMB's benchmarks of non-blocking collectives have it); slower: how much longer that compute takes meanwhile.
  void Link() {
    auto* data = reinterpret_cast<float*>(arena_);
    const float sum = static_cast<float>(world_.size() * (world_.size() + 1) / 2);
    volatile double sink = 0;
    const auto seconds = [](const std::function<void()>& call) {
      const Clock::time_point begin = Clock::now();
      call();
      return Microseconds(begin) * 1e-6;
    };
    const auto median = [](std::vector<double> samples) { return Summarize(std::move(samples)).median; };
    const auto start = [&](int64_t count) {
      MustBeOk(world_.Barrier());
      std::fill_n(data, count, static_cast<float>(world_.rank() + 1));
      MustBeOk(world_.Barrier());
    };
    const double per_round = seconds([&] { sink = Compute(20'000'000); }) / 20e6;
    for (const int64_t bytes : {int64_t{256} << 10, int64_t{2} << 20, int64_t{16} << 20}) {
      const int64_t count = bytes / 4;
      const CollectiveOptions behind{.in_background = true, .waits_asleep = true};
      std::vector<double> alone, computing, both, beside;
      double exchange = 0;
      for (int round = 0; round < options_.rounds + 1; ++round) {
        start(count);
        const double time =
            seconds([&] { MustBeOk(world_.AllReduce(data, count, ElementType::kF32, ReduceOp::kSum).Wait()); });
        for (int64_t i = 0; i < count; ++i) {
          if (data[i] != sum) Fail("the sum over the link is wrong");
        }
        if (round > 0) alone.push_back(time);
      }
      exchange = median(alone);
      MustBeOk(world_.AllReduce(&exchange, 1, ElementType::kF64, ReduceOp::kMax).Wait());
      const auto rounds = static_cast<int64_t>(exchange / per_round);
      for (int round = 0; round < options_.rounds + 1; ++round) {
        start(count);
        const double by_itself = seconds([&] { sink = Compute(rounds); });
        start(count);
        double meanwhile = 0;
        const double time = seconds([&] {
          Pending pending = world_.AllReduce(data, count, ElementType::kF32, ReduceOp::kSum, behind);
          meanwhile = seconds([&] { sink = Compute(rounds); });
          MustBeOk(pending.Wait());
        });
        if (data[count - 1] != sum) Fail("the sum behind compute is wrong");
        if (round == 0) continue;
        computing.push_back(by_itself);
        both.push_back(time);
        beside.push_back(meanwhile);
      }
      if (world_.rank() != 0) continue;
      const double hidden = 1 - (median(both) - median(computing)) / exchange;
      const double slower = median(beside) / median(computing) - 1;
      std::printf(options_.json ? "{\"name\": \"link_all_reduce\", \"ranks\": %d, \"bytes\": %lld, \"us\": %.5g, "
                                  "\"hidden\": %.3f, \"slower\": %.3f}\n"
                                : "link_all_reduce: %d ranks, %lld bytes, %.0f us, %.3f hidden, compute %.3f slower\n",
                  world_.size(), static_cast<long long>(bytes), 1e6 * exchange, hidden, slower);
      std::fflush(stdout);
    }
    Urgent();
  }

 private:
  // 64 KiB of priority while 64 MiB are under way.
  void Urgent() {
    absl::StatusOr<std::unique_ptr<Communicator>> bulk = world_.Split(0, world_.rank(), "bulk");
    absl::StatusOr<std::unique_ptr<Communicator>> urgent = world_.Split(0, world_.rank(), "urgent");
    MustBeOk(bulk.status());
    MustBeOk(urgent.status());
    constexpr int64_t kBulk = (int64_t{64} << 20) / 4, kUrgent = (int64_t{64} << 10) / 4;
    auto* small = reinterpret_cast<float*>(arena_);
    auto* large = reinterpret_cast<float*>(arena_ + (int64_t{1} << 20));
    std::fill_n(large, kBulk, 1.0f);
    MustBeOk(world_.Barrier());
    Pending pending = (*bulk)->AllReduce(large, kBulk, ElementType::kF32, ReduceOp::kSum, {.in_background = true});
    std::vector<double> samples;
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (pending.done()) break;
      std::fill_n(small, kUrgent, 1.0f);
      const Clock::time_point begin = Clock::now();
      MustBeOk((*urgent)->AllReduce(small, kUrgent, ElementType::kF32, ReduceOp::kSum, {.priority = 1}).Wait());
      samples.push_back(Microseconds(begin));
    }
    MustBeOk(pending.Wait());
    for (int64_t i = 0; i < kBulk; ++i) {
      if (large[i] != static_cast<float>(world_.size())) Fail("the long sum beside urgent ones is wrong");
    }
    if (!samples.empty()) Print("urgent_beside_64MiB", 4 * kUrgent, Summarize(samples), 0);
  }

  const Options options_;
  Fabric& fabric_;
  Communicator& world_;
  std::byte* const arena_;
  const int64_t arena_bytes_;
  std::vector<float> private_;
};

int64_t Nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

// Survivors say when they knew of the loss and when they had a new group.
void WaitForALoss(Communicator& world, std::byte* data) {
  absl::Status status;
  while (status.ok()) {
    status = world.AllReduce(data, 1000, ElementType::kF32, ReduceOp::kSum, {.name = "until a loss"}).Wait();
    // In some rounds the others sleep when it happens.
    if (world.rank() == world.size() - 1 && std::getenv("GANTRY_BENCH_ASLEEP") != nullptr)
      std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  const int64_t noticed = Nanoseconds();
  absl::StatusOr<std::unique_ptr<Communicator>> rest = world.Shrink(absl::Seconds(5));
  MustBeOk(rest.status());
  MustBeOk((*rest)->Barrier());
  std::printf("noticed %lld regrouped %lld\n", static_cast<long long>(noticed), static_cast<long long>(Nanoseconds()));
  std::fflush(stdout);
}

// Each rank on a core of its own, as far as they reach, unless the launcher has seen to it.
void BindToCore(int rank) {
  cpu_set_t cores, own;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0 || CPU_COUNT(&cores) < 2) return;
  int wanted = rank % CPU_COUNT(&cores);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &cores) || wanted-- != 0) continue;
    CPU_ZERO(&own);
    CPU_SET(core, &own);
    sched_setaffinity(0, sizeof(own), &own);
  }
}

int RunRank(const Options& options, Job job) {
  BindToCore(job.rank);
  absl::StatusOr<std::unique_ptr<Links>> links = Links::Connect(std::move(job), absl::Seconds(20));
  MustBeOk(links.status());
  absl::StatusOr<std::unique_ptr<Liveness>> liveness =
      Liveness::Watch(**links, {.heartbeat_timeout = absl::Seconds(30)});  // a busy machine is no loss
  MustBeOk(liveness.status());
  absl::StatusOr<std::unique_ptr<Recorder>> recorder = Recorder::Create((*links)->rank(), (*links)->size());
  MustBeOk(recorder.status());
  MustBeOk((*recorder)->Share(**links));
  const bool is_short = options.only == "start" || options.only == "loss";
  const int64_t arena_bytes = options.only == "link" ? int64_t{80} << 20 : is_short ? 1 << 20 : 4 * std::max<int64_t>(options.largest, 1 << 20);
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  absl::StatusOr<std::unique_ptr<Slab>> slab = device->Reserve(arena_bytes);
  MustBeOk(slab.status());
  const PoolRegion region{
      .name = "arena", .data = (*slab)->data(), .bytes = arena_bytes, .descriptor = (*slab)->descriptor()};
  absl::StatusOr<std::unique_ptr<Fabric>> fabric = Fabric::Open(
      **links, **liveness, std::span(&region, 1), {.cross_memory = options.cross_memory, .recorder = recorder->get()});
  MustBeOk(fabric.status());
  if (options.only == "loss") {
    WaitForALoss((*fabric)->world(), (*slab)->data());
  } else if (options.only == "start") {
    auto* data = reinterpret_cast<float*>((*slab)->data());
    std::fill_n(data, 1000, 1.0f);
    MustBeOk((*fabric)->world().AllReduce(data, 1000, ElementType::kF32, ReduceOp::kSum).Wait());
    if (data[999] != static_cast<float>((*links)->size())) Fail("the first sum is wrong");
  } else if (options.only == "link") {
    Bench(options, **fabric, (*slab)->data(), arena_bytes).Link();
  } else {
    Bench(options, **fabric, (*slab)->data(), arena_bytes).Run();
  }
  (*liveness)->Leave();
  return 0;
}

// What the ranks printed, each line.
std::vector<std::string> Launch(const Options& options, std::string_view only,
                                const std::vector<std::string>& environment, bool show,
                                const std::function<void(Launcher&)>& meanwhile, bool may_fail) {
  std::vector<std::string> lines;
  LaunchOptions launch;
  launch.program = {"/proc/self/exe", "--rounds", std::to_string(options.rounds), "--largest",
                    std::to_string(options.largest)};
  if (options.cross_memory) launch.program.push_back("--cross-memory");
  if (options.json) launch.program.push_back("--json");
  if (!only.empty()) launch.program.insert(launch.program.end(), {"--only", std::string(only)});
  launch.ranks = options.ranks;
  for (int rank = 0; options.nodes > 1 && rank < options.ranks; ++rank)
    launch.node_of.push_back(rank * options.nodes / options.ranks);
  launch.environment = environment;
  launch.environment.push_back("GANTRY_BENCH_RANK=1");
  launch.timeout = absl::Minutes(20);
  launch.on_line = [&](int rank, bool is_error, std::string_view line) {
    if (is_error) std::fprintf(stderr, "[%d] %.*s\n", rank, static_cast<int>(line.size()), line.data());
    if (show && !is_error) std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
    if (show) std::fflush(stdout);
    if (!is_error) lines.emplace_back(line);
  };
  absl::StatusOr<std::unique_ptr<Launcher>> launcher = Launcher::Start(launch);
  MustBeOk(launcher.status());
  std::thread beside;
  if (meanwhile != nullptr) beside = std::thread([&] { meanwhile(**launcher); });
  const LaunchResult result = (*launcher)->Wait();
  if (beside.joinable()) beside.join();
  if (result.first_failed >= 0 && !may_fail) Fail(result.reason);
  return lines;
}

void Report(const Options& options, std::string_view name, std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const double median = samples[samples.size() / 2], worst = samples.back();
  if (options.json) {
    std::printf(
        "{\"name\": \"%s\", \"ranks\": %d, \"bytes\": 0, \"us\": %.5g, \"best_us\": %.5g, \"worst_us\": %.5g}\n",
        std::string(name).c_str(), options.ranks, median, samples.front(), worst);
  } else {
    std::printf("%-24s %5d %10s %12.1f %12.1f worst %.1f\n", std::string(name).c_str(), options.ranks, "", median,
                samples.front(), worst);
  }
}

void MeasureStart(const Options& options) {
  std::vector<double> samples;
  for (int i = 0; i < 10; ++i) {
    const Clock::time_point begin = Clock::now();
    Launch(options, "start", {}, false, nullptr, false);
    samples.push_back(Microseconds(begin));
  }
  Report(options, "start", std::move(samples));
}

void MeasureLoss(const Options& options) {
  for (const bool asleep : {false, true}) {
    std::vector<double> noticed, regrouped;
    for (int i = 0; i < 10; ++i) {
      int64_t killed = 0;
      const auto kill = [&](Launcher& launcher) {
        std::this_thread::sleep_for(std::chrono::milliseconds(250 + 7 * i));
        killed = Nanoseconds();
        launcher.Signal(options.ranks - 1, SIGKILL);
      };
      const std::vector<std::string> lines = Launch(
          options, "loss", asleep ? std::vector<std::string>{"GANTRY_BENCH_ASLEEP=1"} : std::vector<std::string>(),
          false, kill, true);
      int count = 0;
      for (const std::string& line : lines) {
        long long when = 0, group = 0;
        if (std::sscanf(line.c_str(), "noticed %lld regrouped %lld", &when, &group) != 2) continue;
        noticed.push_back(1e-3 * static_cast<double>(when - killed));
        regrouped.push_back(1e-3 * static_cast<double>(group - when));
        ++count;
      }
      if (count != options.ranks - 1) Fail("a survivor did not report");
    }
    Report(options, asleep ? "loss_noticed_asleep" : "loss_noticed", std::move(noticed));
    Report(options, asleep ? "loss_regrouped_asleep" : "loss_regrouped", std::move(regrouped));
  }
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const auto value = [&] {
      if (i + 1 >= argc) Fail(absl::StrCat(ToAbsl(flag), " needs a value"));
      return argv[++i];
    };
    if (flag == "--json")
      options.json = true;
    else if (flag == "--ranks")
      options.ranks = std::atoi(value());
    else if (flag == "--nodes")
      options.nodes = std::atoi(value());
    else if (flag == "--transport")
      setenv("GANTRY_TRANSPORT", value(), 1);  // of the ranks, which inherit it
    else if (flag == "--rounds")
      options.rounds = std::max(1, std::atoi(value()));
    else if (flag == "--only")
      options.only = value();
    else if (flag == "--cross-memory")
      options.cross_memory = true;
    else if (flag == "--largest")
      options.largest = std::atoll(value());
    else
      Fail("usage: comm_bench [--ranks 2] [--nodes 1] [--rounds 5] [--json] [--only NAME] [--cross-memory] [--largest "
           "BYTES]");
  }
  if (std::getenv("GANTRY_BENCH_RANK") != nullptr) {
    absl::StatusOr<Job> job = DiscoverJob();
    MustBeOk(job.status());
    return RunRank(options, *std::move(job));
  }
  const bool all = options.only.empty();
  if (options.only != "start" && options.only != "loss") Launch(options, options.only, {}, true, nullptr, false);
  if (all || options.only == "start") MeasureStart(options);
  if ((all || options.only == "loss") && options.ranks > 1) MeasureLoss(options);
  return 0;
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) { return gantry::Main(argc, argv); }
