#include "tools/cli/check_case.h"

#include <cmath>
#include <set>

#include <sys/stat.h>

#include <nlohmann/json.hpp>

namespace gantry::cli {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxCaseBytes = size_t{256} << 20;
constexpr int64_t kMaxSteps = 1'000'000;

// One object of the file; every field that is read is remembered, so that those that nobody understands can be named.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail("is not an object {...}");
  }

  [[noreturn]] void Fail(const std::string& what) const { throw Failure(kExitBadData, where_ + " " + what); }
  [[noreturn]] void Fail(const std::string& field, const std::string& what) const {
    throw Failure(kExitBadData, where_ + ": field '" + field + "' " + what);
  }

  // Null where the field is missing or null.
  const Json* Find(const std::string& field) {
    known_.insert(field);
    const auto place = object_.find(field);
    return place == object_.end() || place->is_null() ? nullptr : &*place;
  }
  // The first of several names for one thing.
  const Json* FindAny(std::initializer_list<const char*> fields) {
    const Json* found = nullptr;
    for (const char* field : fields) {
      const Json* value = Find(field);
      if (value != nullptr && found == nullptr) found = value;
    }
    return found;
  }
  void Ignore(std::initializer_list<const char*> fields) {
    for (const char* field : fields) known_.insert(field);
  }

  double Number(std::initializer_list<const char*> fields, double fallback, double low, double high) {
    const Json* value = FindAny(fields);
    if (value == nullptr) return fallback;
    if (!value->is_number()) Fail(*fields.begin(), "must be a number or null, not " + value->dump().substr(0, 60));
    const double number = value->get<double>();
    if (!(number >= low && number <= high)) Fail(*fields.begin(), Format("is %g; it must be %g to %g", number, low, high));
    return number;
  }
  int64_t Integer(const char* field, int64_t fallback, int64_t low, int64_t high) {
    const Json* value = Find(field);
    if (value == nullptr) return fallback;
    if (!value->is_number_integer()) Fail(field, "must be a whole number, not " + value->dump().substr(0, 60));
    if (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) Fail(field, "is too large");
    const int64_t number = value->get<int64_t>();
    if (number < low || number > high) {
      Fail(field, Format("is %lld; it must be %lld to %lld", static_cast<long long>(number), static_cast<long long>(low),
                         static_cast<long long>(high)));
    }
    return number;
  }
  bool Boolean(const char* field, bool fallback) {
    const Json* value = Find(field);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Fail(field, "must be true or false, not " + value->dump().substr(0, 60));
    return value->get<bool>();
  }
  std::string String(const char* field, const std::string& fallback) {
    const Json* value = Find(field);
    if (value == nullptr) return fallback;
    if (!value->is_string()) Fail(field, "must be a text, not " + value->dump().substr(0, 60));
    return value->get<std::string>();
  }

  // Fields with a value that nobody asked for could change the run: better no answer than a wrong one.
  void RequireAllKnown() const {
    std::string unknown;
    for (const auto& [field, value] : object_.items()) {
      if (value.is_null() || known_.contains(field)) continue;
      unknown += (unknown.empty() ? "'" : ", '") + field + "'";
    }
    if (!unknown.empty()) Fail("has fields that this program does not know: " + unknown + "; remove what does not matter, or set it to null");
  }

 private:
  const Json& object_;
  std::string where_;
  std::set<std::string> known_;
};

// PyTorch's defaults for what is missing.
gantry_optimizer ReadOptimizer(const Json& json, const std::string& where) {
  Fields fields(json, where);
  gantry_optimizer optimizer = GANTRY_OPTIMIZER_INIT;
  const std::string name = fields.String("name", "adam");
  if (name == "adam") {
    optimizer.kind = GANTRY_ADAM;
  } else if (name == "adamw") {
    optimizer.kind = GANTRY_ADAMW;
  } else if (name == "sgd") {
    optimizer.kind = GANTRY_SGD;
  } else {
    fields.Fail("name", "is '" + name + "'; known are adam, adamw and sgd");
  }
  const double largest = 1e300;
  optimizer.learning_rate = fields.Number({"lr", "learning_rate"}, NAN, 0, largest);
  if (std::isnan(optimizer.learning_rate)) fields.Fail("has no 'lr'");
  optimizer.beta1 = 0.9;
  optimizer.beta2 = 0.999;
  if (const Json* betas = fields.Find("betas")) {
    if (!betas->is_array() || betas->size() != 2 || !(*betas)[0].is_number() || !(*betas)[1].is_number()) {
      fields.Fail("betas", "must be two numbers");
    }
    optimizer.beta1 = (*betas)[0].get<double>();
    optimizer.beta2 = (*betas)[1].get<double>();
  }
  optimizer.beta1 = fields.Number({"beta1"}, optimizer.beta1, 0, 1);
  optimizer.beta2 = fields.Number({"beta2"}, optimizer.beta2, 0, 1);
  optimizer.epsilon = fields.Number({"epsilon", "eps"}, 1e-8, 0, largest);
  optimizer.momentum = fields.Number({"momentum"}, 0.0, 0, largest);
  optimizer.nesterov = fields.Boolean("nesterov", false) ? 1 : 0;
  optimizer.weight_decay = fields.Number({"weight_decay"}, name == "adamw" ? 0.01 : 0.0, 0, largest);
  optimizer.clip_norm = fields.Number({"clip_norm"}, 0.0, 0, largest);
  if (fields.Number({"dampening"}, 0.0, -largest, largest) != 0.0) fields.Fail("dampening", "must be 0: Gantry's sgd has no dampening");
  if (fields.Boolean("amsgrad", false)) fields.Fail("amsgrad", "must be false: Gantry's adam has no AMSGrad");
  if (fields.Boolean("maximize", false)) fields.Fail("maximize", "must be false");
  if (name != "sgd" && optimizer.momentum != 0.0) fields.Fail("momentum", "has no meaning for " + name);
  fields.Ignore({"foreach", "fused", "capturable", "differentiable"});  // how PyTorch computes, not what
  fields.RequireAllKnown();
  return optimizer;
}

void ReadOptimizers(Fields& fields, ReferenceCase& result) {
  const Json* shared = fields.Find("optimizer");
  const auto One = [&](const char* role, std::initializer_list<const char*> names) {
    Json merged = Json::object();
    if (shared != nullptr) {
      if (!shared->is_object()) fields.Fail("optimizer", "must be an object {...}");
      merged = *shared;
      merged.erase("generator");
      merged.erase("discriminator");
      if (const auto own = shared->find(role); own != shared->end() && own->is_object()) merged.update(*own);
    }
    if (const Json* own = fields.FindAny(names)) {
      if (!own->is_object()) fields.Fail(*names.begin(), "must be an object {...}");
      merged.update(*own);
    }
    return ReadOptimizer(merged, result.folder + "/case.json: optimizer of the " + role);
  };
  result.generator = One("generator", {"generator_optimizer", "optimizer_generator"});
  result.discriminator = One("discriminator", {"discriminator_optimizer", "optimizer_discriminator"});
}

std::vector<double> NumberRow(const Json& json, const std::string& where) {
  if (!json.is_array()) throw Failure(kExitBadData, where + " must be an array of numbers");
  std::vector<double> row;
  for (const Json& value : json) {
    if (!value.is_number()) throw Failure(kExitBadData, where + " must hold numbers only, not " + value.dump().substr(0, 60));
    row.push_back(value.get<double>());
  }
  return row;
}

void ReadExpected(Fields& fields, ReferenceCase& result) {
  const std::string where = result.folder + "/case.json: ";
  const Json* columns = fields.Find("columns");
  if (columns == nullptr || !columns->is_array()) fields.Fail("columns", "must name the columns of the log");
  for (const Json& column : *columns) {
    if (!column.is_string()) fields.Fail("columns", "must hold texts only");
    result.columns.push_back(column.get<std::string>());
  }
  const Json* log = fields.Find("log_float64");
  if (log == nullptr || !log->is_array() || static_cast<int64_t>(log->size()) != result.steps) {
    fields.Fail("log_float64", Format("must have a row for each of the %lld steps", static_cast<long long>(result.steps)));
  }
  for (const Json& row : *log) {
    result.log.push_back(NumberRow(row, where + "a row of log_float64"));
    if (result.log.back().size() != result.columns.size()) fields.Fail("log_float64", "has a row with another length than 'columns'");
  }
  if (const Json* norms = fields.Find("gradient_norm_step1")) {
    if (!norms->is_object()) fields.Fail("gradient_norm_step1", "must be an object of numbers");
    for (const auto& [name, norm] : norms->items()) {
      if (norm.is_null()) continue;
      if (!norm.is_number()) fields.Fail("gradient_norm_step1", "must hold numbers only");
      result.gradient_norms[name] = norm.get<double>();
    }
  }
  if (const Json* drift = fields.Find("float32_vs_float64")) {
    if (!drift->is_object()) fields.Fail("float32_vs_float64", "must be an object");
    const auto rows = drift->find("max_abs_log");
    if (rows != drift->end() && !rows->is_null()) {
      result.drift = NumberRow(*rows, where + "float32_vs_float64.max_abs_log");
      if (static_cast<int64_t>(result.drift.size()) != result.steps) fields.Fail("float32_vs_float64", "max_abs_log must have a number a step");
    }
  }
}

ReferenceCase Read(const std::string& folder, bool expected) {
  struct stat info{};
  if (stat(folder.c_str(), &info) != 0) {
    throw Failure(kExitMissingInput, folder + ": no such case folder; a case holds case.json, two .onnx files, real.npy, noise.npy and expected.npz");
  }
  if (!S_ISDIR(info.st_mode)) throw Failure(kExitBadData, folder + " is not a folder; give the folder that holds case.json");
  const std::string path = folder + "/case.json";
  std::string text;
  try {
    text = ReadTextFile(path, kMaxCaseBytes);
  } catch (const Failure& failure) {
    throw Failure(kExitBadData, failure.what());
  }
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw Failure(kExitBadData, path + " is not JSON");
  Fields fields(json, path);
  ReferenceCase result;
  result.folder = folder;
  result.name = fields.String("name", folder);
  result.steps = fields.Integer("steps", 0, 1, kMaxSteps);
  result.batch = fields.Integer("batch", 0, 1, 1 << 24);
  if (result.steps == 0) fields.Fail("has no 'steps'");
  if (result.batch == 0) fields.Fail("has no 'batch'");
  static constexpr const char* kLosses[] = {"nonsaturating", "hinge", "wgan", "leastsquares", "relativistic"};
  const std::string loss = fields.String("loss", "");
  int index = -1;
  for (int i = 0; i < 5; ++i) {
    if (loss == kLosses[i]) index = i;
  }
  if (index < 0) fields.Fail("loss", "is '" + loss + "'; known are nonsaturating, hinge, wgan, leastsquares and relativistic");
  gantry_gan_config& config = result.config;
  config.loss = index;
  const double largest = 1e300;
  config.r1 = fields.Number({"r1"}, 0.0, 0, largest);
  config.r2 = fields.Number({"r2"}, 0.0, 0, largest);
  config.gradient_penalty = fields.Number({"gradient_penalty"}, 0.0, 0, largest);
  config.ema = fields.Number({"ema"}, 0.0, 0, 1);
  if (config.ema >= 1.0) fields.Fail("ema", "must be below 1");
  config.penalty_every = static_cast<int32_t>(fields.Integer("r1_every", 1, 1, INT32_MAX));
  const int64_t r2_every = fields.Integer("r2_every", config.penalty_every, 1, INT32_MAX);
  if (r2_every != config.penalty_every && config.r2 > 0) fields.Fail("r2_every", "must equal 'r1_every': both penalties share their steps");
  config.n_critic = static_cast<int32_t>(fields.Integer("n_critic", 1, 1, 1000));
  if (fields.Integer("accumulate", 1, 1, 1000) != 1) fields.Fail("accumulate", "must be 1");
  ReadOptimizers(fields, result);
  fields.Ignore({"columns", "log_float64", "log_float32", "gradient_norm_step1", "float32_vs_float64"});
  fields.Ignore({"made_with", "description", "note", "notes", "comment", "origin", "source", "seed", "date", "script", "license",
                 "family", "architecture"});  // for the reader
  fields.RequireAllKnown();
  if (expected) ReadExpected(fields, result);
  return result;
}

}  // namespace

ReferenceCase ReadCase(const std::string& folder) { return Read(folder, true); }
ReferenceCase ReadCaseSettings(const std::string& folder) { return Read(folder, false); }

}  // namespace gantry::cli
