// A network before it is part of a step: its forward program for one batch size.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// The program's inputs are the network's (the batch is dimension 0 of each), its outputs likewise. Its states are parameters
// and running statistics, named as in the file or family ("0.weight"), with an empty network. Statistics are updated in the
// program (training mode). Random ops (dropout, noise) read the optional input kRandomState.
struct Model {
  std::string name;
  Program program;
};

// The program input, i64[2] = {seed, counter}, that random ops read. A step advances the counter.
inline constexpr std::string_view kRandomState = "random_state";

struct EmitOptions {
  bool update_statistics = true;  // false: the use leaves running statistics as they are
  int64_t stream_use = -1;        // draw the random numbers of an earlier use again (uses count from 0); -1: new ones
};

// Emits models into a step program. A network may be emitted several times (discriminator on real, on fake, in the generator
// phase): all uses share its states, which are created as "<network>.<state>" at the first use, and each use starts from the
// states' newest versions.
class ModelEmitter {
 public:

  explicit ModelEmitter(Program& program) : program_(program) {}

  // The model's outputs. `inputs` are bound in the order of the model's inputs, without kRandomState, which is bound to the
  // program's input of that name (added when first needed). Ops get the program's phase and `network`; every use draws
  // other random numbers. Errors stick to the program.
  std::vector<ValueId> Emit(const Model& model, std::string_view network, std::span<const ValueId> inputs,
                            const EmitOptions& options = {});

  // Uses so far.
  int64_t uses() const { return uses_; }
  // The newest version of a state of the step program ("discriminator.0.weight"); kNoValue where there is none.
  ValueId Current(std::string_view state) const;
  // `value` is the state's newest version from here on.
  void Update(std::string_view state, ValueId value);

 private:
  Program& program_;
  std::map<std::string, ValueId, std::less<>> current_;
  int64_t uses_ = 0;
};

}  // namespace gantry
