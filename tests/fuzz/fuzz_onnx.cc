// What imports is a whole program: every state has content of its size, every output a value.
#include "runtime/graph/onnx.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<Model> model =
      ImportOnnx(FuzzInput(data, size), {.name = "fuzz", .batch = 2, .force_training = size % 2 == 0});
  if (!model.ok()) return 0;
  const Program& program = model->program;
  GANTRY_FUZZ_CHECK(program.status().ok());
  GANTRY_FUZZ_CHECK(!program.outputs().empty());
  for (const State& state : program.states()) {
    const int64_t count = program.TypeOf(state.first).element_count();
    GANTRY_FUZZ_CHECK(state.initializer.kind != Initializer::Kind::kData ||
                      static_cast<int64_t>(state.initializer.data.size()) == count);
    GANTRY_FUZZ_CHECK(program.TypeOf(state.last) == program.TypeOf(state.first));
  }
  for (const NamedValue& output : program.outputs()) GANTRY_FUZZ_CHECK(output.value != kNoValue);
  GANTRY_FUZZ_CHECK(!program.Dump().empty());
  return 0;
}
