// What a slow link costs the least: two ranks send each other bytes over one TCP connection, a thread for each direction that does nothing
// else, while a third computes. socket_floor RANK ADDRESS [PIECE_KIB]; rank 0 listens at the address. Prints one JSON object: microseconds
// for `bytes` each way, and by how much the compute beside it is slower. link.py runs it on both hosts.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{64} << 20, kBufferBytes = size_t{2} << 20;
constexpr int kPort = 4712;
constexpr auto kAlone = std::chrono::milliseconds(500);
using Clock = std::chrono::steady_clock;

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(74);
}

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

int Connect(int rank, const char* address) {
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(kPort);
  if (inet_pton(AF_INET, address, &at.sin_addr) != 1) Fail(address);
  const int on = 1;
  for (int attempt = 0;; ++attempt) {
    const int own = socket(AF_INET, SOCK_STREAM, 0);
    if (own < 0) Fail("socket");
    if (rank == 0) {
      setsockopt(own, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
      if (bind(own, reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0 || listen(own, 1) != 0) Fail("listen");
      const int peer = accept(own, nullptr, nullptr);
      if (peer < 0) Fail("accept");
      close(own);
      return peer;
    }
    if (connect(own, reinterpret_cast<sockaddr*>(&at), sizeof(at)) == 0) return own;
    if (attempt == 1000) Fail("connect");
    close(own);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// `move` is send or recv; of one piece at a time, as few calls as a piece takes.
template <typename Move>
void Stream(size_t piece, Move move) {
  std::vector<char> buffer(kBufferBytes, 1);
  for (size_t done = 0; done < kBytes;) {
    const size_t at = done % kBufferBytes;
    const ssize_t count = move(buffer.data() + at, std::min({piece, kBufferBytes - at, kBytes - done}));
    if (count <= 0) Fail("moving bytes");
    done += static_cast<size_t>(count);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 64;
  const int rank = std::atoi(argv[1]);
  const size_t piece = (argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 256) << 10;
  cpu_set_t core;
  CPU_ZERO(&core);
  CPU_SET(static_cast<size_t>(rank) % std::max(1U, std::thread::hardware_concurrency()), &core);
  sched_setaffinity(0, sizeof(core), &core);
  const int connection = Connect(rank, argv[2]);

  std::atomic<bool> stop = false;
  std::atomic<int64_t> work = 0;
  std::thread compute([&] {
    double x = 1;
    while (!stop.load(std::memory_order_relaxed)) {
      for (int i = 0; i < 1000; ++i) x = x * 1.0000001 + 1e-9;
      work.store(work.load(std::memory_order_relaxed) + (x > 0), std::memory_order_relaxed);
    }
  });
  const auto rate_of = [&](auto&& meanwhile) {
    const int64_t before = work;
    const Clock::time_point begin = Clock::now();
    meanwhile();
    return static_cast<double>(work - before) / SecondsSince(begin);
  };
  const double alone = rate_of([] { std::this_thread::sleep_for(kAlone); });
  double seconds = 0;
  const double beside = rate_of([&] {
    const Clock::time_point begin = Clock::now();
    std::thread sender([&] { Stream(piece, [&](char* data, size_t bytes) { return send(connection, data, bytes, 0); }); });
    int least = 0;
    Stream(piece, [&](char* data, size_t bytes) {
      // Wakes once all of the piece is there; recv alone would take what there is and wait for as much again.
      const int all = static_cast<int>(bytes);
      if (all != std::exchange(least, all)) setsockopt(connection, SOL_SOCKET, SO_RCVLOWAT, &all, sizeof(all));
      pollfd ready{.fd = connection, .events = POLLIN, .revents = 0};
      if (poll(&ready, 1, -1) != 1) Fail("poll");
      return recv(connection, data, bytes, 0);
    });
    sender.join();
    seconds = SecondsSince(begin);
  });
  stop = true;
  compute.join();
  std::printf("{\"name\": \"link_floor\", \"ranks\": 2, \"bytes\": %zu, \"us\": %.5g, \"slower\": %.4f}\n", kBytes, seconds * 1e6, alone / beside - 1);
}
