// Runs a fuzz target without libFuzzer, the same way every time: each file of the corpus, then `--runs` mutations of
// them.
//   fuzz_npy [--runs=20000] [--seed=1] [--only=I] [--save=FILE] CORPUS...
// Mutation i depends on the seed, i and the corpus alone. When one fails, its number is printed: --only=I runs it again
// alone, with --save=FILE its bytes are kept. A CORPUS is a folder of inputs or one input.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Targets may define it; libFuzzer calls it first.
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);
// There in builds with a sanitizer, which ends the program without a signal.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Input = std::vector<uint8_t>;
constexpr size_t kMaxInputBytes = 1 << 16;

volatile int64_t current_run = -1;  // -1: a file of the corpus
const char* volatile current_file = "(the empty input)";

// Says which input was at work when the program is about to die. Only functions that a signal handler may call.
void ReportInput() {
  char text[32];
  const auto put = [](const char* part, size_t size) { (void)!write(STDERR_FILENO, part, size); };
  constexpr std::string_view kFile = "failed with the corpus file ", kMutation = "failed with mutation --only=";
  if (current_run < 0) {
    put(kFile.data(), kFile.size());
    put(current_file, std::strlen(current_file));
  } else {
    put(kMutation.data(), kMutation.size());
    put(text,
        static_cast<size_t>(std::to_chars(text, text + sizeof(text), static_cast<int64_t>(current_run)).ptr - text));
  }
  put("\n", 1);
}

void ReportSignal(int number) {
  ReportInput();
  signal(number, SIG_DFL);
  raise(number);
}

// Small random numbers, the same with every standard library (std::uniform_int_distribution is not).
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t Below(size_t bound) { return bound == 0 ? 0 : static_cast<size_t>(engine_() % bound); }

 private:
  std::mt19937_64 engine_;
};

void MutateOnce(Input& input, const std::vector<Input>& corpus, Random& random) {
  static constexpr uint64_t kInteresting[] = {0,
                                              1,
                                              7,
                                              8,
                                              0x7f,
                                              0x80,
                                              0xff,
                                              0x7fff,
                                              0x8000,
                                              0xffff,
                                              0x7fffffff,
                                              0x80000000,
                                              0xffffffff,
                                              0x7fffffffffffffff,
                                              0x8000000000000000,
                                              ~uint64_t{0}};
  static constexpr std::string_view kText = "0123456789-+.,:;'\"()[]{}<>|=eE \n\\";
  const size_t at = random.Below(input.size() + 1), left = input.size() - at;
  const size_t count = std::min(left, 1 + random.Below(random.Below(4) == 0 ? 64 : 4));
  switch (random.Below(10)) {
    case 0:
      if (left > 0) input[at] = static_cast<uint8_t>(input[at] ^ 1u << random.Below(8));
      break;
    case 1:
      if (left > 0) input[at] = static_cast<uint8_t>(random.Below(256));
      break;
    case 2:
      if (left > 0) input[at] = static_cast<uint8_t>(input[at] + random.Below(33) - 16);
      break;
    case 3:
      if (left > 0) input[at] = static_cast<uint8_t>(kText[random.Below(kText.size())]);
      break;
    case 4: {  // a number at the edge of some range, of either byte order
      uint8_t bytes[8];
      const uint64_t value = kInteresting[random.Below(std::size(kInteresting))];
      std::memcpy(bytes, &value, sizeof(bytes));
      const size_t width = std::min(left, size_t{1} << random.Below(4));
      if (random.Below(2) == 0) std::reverse(bytes, bytes + width);
      std::copy_n(bytes, width, input.begin() + at);
      break;
    }
    case 5:
      input.erase(input.begin() + at, input.begin() + at + count);
      break;
    case 6: {  // a piece comes twice
      const Input piece(input.begin() + at, input.begin() + at + count);
      input.insert(input.begin() + random.Below(input.size() + 1), piece.begin(), piece.end());
      break;
    }
    case 7:
      input.insert(input.begin() + at, 1 + random.Below(8), static_cast<uint8_t>(random.Below(256)));
      break;
    case 8:
      if (random.Below(4) == 0) input.resize(at);
      break;
    case 9: {  // the rest comes from another input
      const Input& other = corpus[random.Below(corpus.size())];
      const size_t from = random.Below(other.size() + 1);
      input.resize(at);
      input.insert(input.end(), other.begin() + from, other.end());
      break;
    }
  }
  if (input.size() > kMaxInputBytes) input.resize(kMaxInputBytes);
}

Input Mutation(uint64_t seed, int64_t run, const std::vector<Input>& corpus) {
  Random random(seed * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(run));
  Input input = corpus[random.Below(corpus.size())];
  const size_t count = 1 + random.Below(random.Below(4) == 0 ? 16 : 3);
  for (size_t i = 0; i < count; ++i) MutateOnce(input, corpus, random);
  return input;
}

// A copy of exactly the input's size, so that a sanitizer sees every read past its end.
void Run(const Input& input) {
  Input exact(input);
  exact.shrink_to_fit();
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

bool ReadNumber(std::string_view argument, std::string_view name, int64_t& value) {
  if (argument.substr(0, name.size()) != name) return false;
  argument.remove_prefix(name.size());
  const auto [end, error] = std::from_chars(argument.data(), argument.data() + argument.size(), value);
  if (error != std::errc() || end != argument.data() + argument.size()) {
    std::fprintf(stderr, "%.*s takes a number\n", static_cast<int>(name.size()), name.data());
    std::exit(2);
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  namespace fs = std::filesystem;
  int64_t runs = 20000, seed = 1, only = -1;
  std::string save;
  std::vector<fs::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (ReadNumber(argument, "--runs=", runs) || ReadNumber(argument, "--seed=", seed) ||
        ReadNumber(argument, "--only=", only)) {
      continue;
    }
    if (argument.substr(0, 7) == "--save=") {
      save = argument.substr(7);
    } else if (fs::is_directory(argument)) {
      for (const auto& entry : fs::recursive_directory_iterator(argument)) {
        if (entry.is_regular_file()) files.push_back(entry.path());
      }
    } else {
      files.emplace_back(argument);
    }
  }
  std::sort(files.begin(), files.end());
  std::vector<Input> corpus;
  for (const fs::path& path : files) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", path.c_str());
      return 2;
    }
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "no corpus: name a folder of inputs\n");
    return 2;
  }

  if (__sanitizer_set_death_callback != nullptr) {
    __sanitizer_set_death_callback(ReportInput);
    signal(SIGABRT, ReportSignal);
  } else {
    for (int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) signal(number, ReportSignal);
  }
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  const auto start = std::chrono::steady_clock::now();
  double slowest_seconds = 0.0;
  int64_t slowest_run = -1;
  if (only < 0) {
    Run({});
    for (size_t i = 0; i < corpus.size(); ++i) {
      current_file = files[i].c_str();
      Run(corpus[i]);
    }
  }
  for (int64_t run = only < 0 ? 0 : only; run < (only < 0 ? runs : only + 1); ++run) {
    const Input input = Mutation(static_cast<uint64_t>(seed), run, corpus);
    if (!save.empty() && only >= 0) {
      std::ofstream(save, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), input.size());
    }
    current_run = run;
    const auto before = std::chrono::steady_clock::now();
    Run(input);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
    if (seconds > slowest_seconds) {
      slowest_seconds = seconds;
      slowest_run = run;
    }
  }
  std::printf("%zu files and %lld mutations in %.1f s; the slowest mutation, %lld, took %.1f ms\n", corpus.size(),
              static_cast<long long>(only < 0 ? runs : 1),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
              static_cast<long long>(slowest_run), slowest_seconds * 1e3);
  return 0;
}
