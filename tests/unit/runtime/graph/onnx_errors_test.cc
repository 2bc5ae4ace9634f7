// What the importer makes of weights, modes and broken or hostile files, on models built here message by message.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numbers>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/graph/onnx.h"
#include "runtime/graph/onnx/host_tensor.h"
#include "tests/support/model_runner.h"

namespace gantry {
namespace {

using onnx::AttributeProto;
using onnx::ModelProto;
using onnx::NodeProto;
using onnx::TensorProto;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int32_t kOnnxFloat = 1;
constexpr int32_t kOnnxInt64 = 7;

// A model with the input "x" [batch, 4] and the output "y".
class ModelFile {
 public:
  explicit ModelFile(int64_t opset = 17) {
    proto_.add_opset_import()->set_version(opset);
    auto* input = proto_.mutable_graph()->add_input();
    input->set_name("x");
    auto* type = input->mutable_type()->mutable_tensor_type();
    type->set_elem_type(kOnnxFloat);
    type->mutable_shape()->add_dim()->set_dim_param("batch");
    type->mutable_shape()->add_dim()->set_dim_value(4);
    proto_.mutable_graph()->add_output()->set_name("y");
  }

  ModelProto& proto() { return proto_; }
  onnx::TensorShapeProto& input_shape() {
    return *proto_.mutable_graph()->mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape();
  }

  NodeProto& Add(std::string op, std::vector<std::string> inputs, std::string output) {
    NodeProto& node = *proto_.mutable_graph()->add_node();
    node.set_name(absl::StrCat("node", proto_.graph().node_size()));
    node.set_op_type(std::move(op));
    for (std::string& input : inputs) node.add_input(std::move(input));
    node.add_output(std::move(output));
    return node;
  }

  TensorProto& Weight(std::string name, std::vector<int64_t> dims, std::vector<float> values) {
    TensorProto& tensor = *proto_.mutable_graph()->add_initializer();
    tensor.set_name(std::move(name));
    tensor.set_data_type(kOnnxFloat);
    for (int64_t dim : dims) tensor.add_dims(dim);
    for (float value : values) tensor.add_float_data(value);
    return tensor;
  }

  std::string bytes() const { return proto_.SerializeAsString(); }
  absl::StatusOr<Model> Import(OnnxOptions options = {.batch = 3}) const {
    const std::string file = bytes();
    return ImportOnnx(std::as_bytes(std::span(file)), options);
  }
  std::string Error(OnnxOptions options = {.batch = 3}) const {
    const absl::StatusOr<Model> model = Import(std::move(options));
    return model.ok() ? "it was imported" : std::string(Message(model.status()));
  }

 private:
  ModelProto proto_;
};

AttributeProto& SetInt(NodeProto& node, std::string name, int64_t value) {
  AttributeProto& attribute = *node.add_attribute();
  attribute.set_name(std::move(name));
  attribute.set_type(2);
  attribute.set_i(value);
  return attribute;
}

std::string RoleOf(const absl::StatusOr<Model>& model, std::string_view name) {
  if (!model.ok()) return std::string(Message(model.status()));
  const State* state = model->program.FindState(name);
  if (state == nullptr) return "none";
  return state->role == StateRole::kParameter ? "parameter" : "statistic";
}

TEST(OnnxWeightsTest, NamesAndUsesDecideWhatIsTrained) {
  ModelFile file;
  const auto AddArithmetic = [&](std::string name, std::vector<float> values) {
    const std::string before =
        file.proto().graph().node_size() == 0 ? "x" : file.proto().graph().node().rbegin()->output(0);
    file.Weight(name, {static_cast<int64_t>(values.size())}, values);
    file.Add("Mul", {before, name}, absl::StrCat("t", file.proto().graph().node_size()));
  };
  AddArithmetic("input.const", {1, 2, 3, 4});
  AddArithmetic("gamma.scale", {0.5f});
  AddArithmetic("const", {1, 2, 3, 5});
  AddArithmetic("scalar", {0.5f});
  AddArithmetic("onnx::Mul_12", {1, 2, 3, 6});
  AddArithmetic("/layer.1/Constant_output_0", {1, 2, 3, 7});
  AddArithmetic("mul_3", {1, 2, 3, 8});
  AddArithmetic("17", {2, 2, 2, 2});
  AddArithmetic("blur.filter", {1, 2, 3, 9});
  AddArithmetic("0.weight_u", {1, 2, 3, 10});
  file.Weight("onnx::MatMul_21", {4, 4}, std::vector<float>(16, 1.0f));
  file.Add("MatMul", {"t9", "onnx::MatMul_21"}, "m");
  file.Weight("val_7", {4, 4}, std::vector<float>(16, 1.0f));
  file.Add("MatMul", {"m", "val_7"}, "n");
  file.Weight("unused.weight", {4}, {1, 2, 3, 4});
  file.Add("Identity", {"onnx::MatMul_21"}, "alias");
  file.Add("MatMul", {"n", "alias"}, "y");
  const absl::StatusOr<Model> model = file.Import({.batch = 3, .frozen = {"blur.filter"}});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(RoleOf(model, "input.const"), "parameter");
  EXPECT_EQ(RoleOf(model, "gamma.scale"), "parameter");
  EXPECT_EQ(RoleOf(model, "const"), "parameter");
  EXPECT_EQ(RoleOf(model, "scalar"), "none");
  EXPECT_EQ(RoleOf(model, "onnx::Mul_12"), "statistic");
  EXPECT_EQ(RoleOf(model, "/layer.1/Constant_output_0"), "statistic");
  EXPECT_EQ(RoleOf(model, "mul_3"), "statistic");
  EXPECT_EQ(RoleOf(model, "17"), "none");
  EXPECT_EQ(RoleOf(model, "blur.filter"), "statistic");
  EXPECT_EQ(RoleOf(model, "0.weight_u"), "statistic");
  EXPECT_EQ(RoleOf(model, "onnx::MatMul_21"), "parameter");
  EXPECT_EQ(RoleOf(model, "val_7"), "none");
  EXPECT_EQ(RoleOf(model, "unused.weight"), "none");
  EXPECT_EQ(RoleOf(model, "alias"), "none");
  EXPECT_THAT(file.Error({.batch = 3, .frozen = {"blur.filte"}}), HasSubstr("no initializer 'blur.filte'"));
}

// Transposing a weight must not turn it into a constant.
TEST(OnnxWeightsTest, RearrangedWeightsStayTrainable) {
  ModelFile file;
  file.Weight("0.weight", {2, 4}, {1, 2, 3, 4, 5, 6, 7, 8});
  file.Add("Transpose", {"0.weight"}, "t");
  file.Add("MatMul", {"x", "t"}, "y");
  EXPECT_EQ(RoleOf(file.Import(), "0.weight"), "parameter");
}

TEST(OnnxWeightsTest, ReadsEveryElementType) {
  const auto Read = [](int32_t type, const std::string& raw) {
    TensorProto tensor;
    tensor.set_data_type(type);
    tensor.add_dims(2);
    tensor.set_raw_data(raw);
    const absl::StatusOr<onnx::HostTensor> host = onnx::ReadTensor(tensor, {});
    EXPECT_TRUE(host.ok()) << host.status();
    return host.ok() ? std::vector<double>{host->Real(0), host->Real(1)} : std::vector<double>();
  };
  const auto Raw = [](auto... values) {
    std::string raw;
    ((raw += std::string(reinterpret_cast<const char*>(&values), sizeof(values))), ...);
    return raw;
  };
  EXPECT_THAT(Read(1, Raw(1.5f, -2.0f)), ElementsAre(1.5, -2.0));
  EXPECT_THAT(Read(11, Raw(1.5, -2.0)), ElementsAre(1.5, -2.0));
  EXPECT_THAT(Read(10, Raw(uint16_t{0x3e00}, uint16_t{0x8001})), ElementsAre(1.5, -std::ldexp(1.0, -24)));
  EXPECT_THAT(Read(10, Raw(uint16_t{0x7c00}, uint16_t{0xfbff})), ElementsAre(INFINITY, -65504.0));
  EXPECT_THAT(Read(16, Raw(uint16_t{0x3fc0}, uint16_t{0xc000})), ElementsAre(1.5, -2.0));
  EXPECT_THAT(Read(2, Raw(uint8_t{200}, uint8_t{1})), ElementsAre(200.0, 1.0));
  EXPECT_THAT(Read(3, Raw(int8_t{-2}, int8_t{1})), ElementsAre(-2.0, 1.0));
  EXPECT_THAT(Read(4, Raw(uint16_t{60000}, uint16_t{1})), ElementsAre(60000.0, 1.0));
  EXPECT_THAT(Read(5, Raw(int16_t{-300}, int16_t{1})), ElementsAre(-300.0, 1.0));
  EXPECT_THAT(Read(6, Raw(int32_t{-70000}, int32_t{1})), ElementsAre(-70000.0, 1.0));
  EXPECT_THAT(Read(7, Raw(int64_t{-7}, int64_t{1})), ElementsAre(-7.0, 1.0));
  EXPECT_THAT(Read(9, Raw(uint8_t{5}, uint8_t{0})), ElementsAre(1.0, 0.0));
  EXPECT_THAT(Read(12, Raw(uint32_t{4000000000u}, uint32_t{1})), ElementsAre(4e9, 1.0));
}

TEST(OnnxWeightsTest, NumbersAreTakenBackFromTheirRounding) {
  EXPECT_EQ(onnx::BeforeRounding(0.2f), 0.2);
  EXPECT_EQ(onnx::BeforeRounding(1e-5f), 1e-5);
  EXPECT_EQ(onnx::BeforeRounding(-0.9f), -0.9);
  EXPECT_DOUBLE_EQ(onnx::BeforeRounding(0.70710677f), std::sqrt(0.5));
  EXPECT_EQ(onnx::BeforeRounding(1.4142135f), std::numbers::sqrt2);
  EXPECT_EQ(onnx::BeforeRounding(0.33333334f), 1.0 / 3.0);
  EXPECT_EQ(onnx::BeforeRounding(-0.7978846f), -std::sqrt(2 / std::numbers::pi));
  EXPECT_EQ(onnx::BeforeRounding(16777216.0f), 16777216.0);
  EXPECT_EQ(onnx::BeforeRounding(0.0f), 0.0);
  EXPECT_EQ(onnx::BeforeRounding(0.1), 0.1);
  EXPECT_TRUE(std::isinf(onnx::BeforeRounding(INFINITY)));
  // Whatever is chosen rounds to the same f32.
  for (uint32_t i = 0; i < 20000; ++i) {
    const float value = std::bit_cast<float>(0x30000000u + i * 40503u);
    ASSERT_EQ(static_cast<float>(onnx::BeforeRounding(value)), value) << i;
  }
}

ModelFile BatchNormFile(bool training_mode) {
  ModelFile file;
  file.Weight("1.weight", {4}, {1, 2, 3, 4});
  file.Weight("1.bias", {4}, {0, 1, 0, 1});
  file.Weight("1.running_mean", {4}, {0.5, 0.5, 0, 0});
  file.Weight("1.running_var", {4}, {4, 4, 1, 1});
  NodeProto& node = file.Add("BatchNormalization", {"x", "1.weight", "1.bias", "1.running_mean", "1.running_var"}, "y");
  SetInt(node, "training_mode", training_mode ? 1 : 0);
  return file;
}

TEST(OnnxTrainingModeTest, OptionsDecideWhetherBatchNormTrains) {
  const auto Updates = [](const absl::StatusOr<Model>& model) {
    EXPECT_TRUE(model.ok()) << model.status();
    const State* mean = model->program.FindState("1.running_mean");
    EXPECT_EQ(mean->role, StateRole::kStatistic);
    return mean->first != mean->last;
  };
  EXPECT_TRUE(Updates(BatchNormFile(true).Import()));
  EXPECT_FALSE(Updates(BatchNormFile(false).Import()));
  EXPECT_FALSE(Updates(BatchNormFile(true).Import({.batch = 3, .training = false})));
  EXPECT_TRUE(Updates(BatchNormFile(false).Import({.batch = 3, .force_training = true})));
  EXPECT_THAT(BatchNormFile(true).Error({.batch = 1}),
              AllOf(HasSubstr("node1"), HasSubstr("more than one value per channel")));
  const absl::StatusOr<Model> inference =
      BatchNormFile(true).Import({.batch = 1, .dtype = DataType::kF64, .training = false});
  ASSERT_TRUE(inference.ok());
  const absl::StatusOr<test::ModelResult> result = test::RunModel(*inference, {{"x", {2.5, 4.5, 1, 2}}});
  ASSERT_TRUE(result.ok()) << result.status();
  const std::vector<double>& y = result->outputs.at("y");
  const double root = std::sqrt(4 + 1e-5);
  EXPECT_NEAR(y[0], 2.0 / root, 1e-15);
  EXPECT_NEAR(y[1], 2.0 * 4.0 / root + 1.0, 1e-15);
}

TEST(OnnxTrainingModeTest, RandomNodesReadTheRandomStateAndDrawApart) {
  ModelFile file;
  file.Add("Dropout", {"x"}, "a");
  file.Add("RandomNormalLike", {"a"}, "b");
  file.Add("Add", {"a", "b"}, "c");
  file.Add("Dropout", {"c"}, "y");
  const absl::StatusOr<Model> trained = file.Import({.batch = 3, .force_training = true});
  ASSERT_TRUE(trained.ok()) << trained.status();
  EXPECT_NE(trained->program.FindInput(kRandomState), kNoValue);
  std::vector<int64_t> streams;
  for (const Op& op : trained->program.ops()) {
    if (op.attributes.Has("stream")) streams.push_back(op.attributes.Int("stream"));
  }
  EXPECT_THAT(streams, ElementsAre(0, 1, 2));
  const absl::StatusOr<Model> as_exported = file.Import();  // a Dropout without training_mode does nothing
  ASSERT_TRUE(as_exported.ok());
  int draws = 0;
  for (const Op& op : as_exported->program.ops()) draws += op.attributes.Has("stream");
  EXPECT_EQ(draws, 1);
}

TEST(OnnxErrorsTest, NameTheNodeAndWhatIsPossible) {
  ModelFile unknown;
  unknown.Add("Einsum", {"x"}, "y");
  EXPECT_THAT(unknown.Error({.name = "critic", .batch = 3}), AllOf(HasSubstr("critic"), HasSubstr("'node1' (Einsum)"),
                                                                   HasSubstr("Abs, Add, And"), HasSubstr("Where")));
  ModelFile domain;
  domain.Add("Gelu", {"x"}, "y").set_domain("com.microsoft");
  EXPECT_THAT(domain.Error(), HasSubstr("com.microsoft"));
  ModelFile missing;
  missing.Add("Relu", {"z"}, "y");
  EXPECT_THAT(missing.Error(), AllOf(HasSubstr("node1"), HasSubstr("'z'"), HasSubstr("no node, input or initializer")));
  ModelFile cycle;
  cycle.Add("Add", {"x", "b"}, "a");
  cycle.Add("Relu", {"a"}, "b");
  cycle.Add("Relu", {"b"}, "y");
  EXPECT_THAT(cycle.Error(), AllOf(HasSubstr("node1"), HasSubstr("node2"), HasSubstr("cycle")));
  ModelFile twice;
  twice.Add("Relu", {"x"}, "a");
  twice.Add("Relu", {"a"}, "a");
  twice.Add("Relu", {"a"}, "y");
  EXPECT_THAT(twice.Error(), HasSubstr("'a' is defined twice"));
  ModelFile no_output;
  EXPECT_THAT(no_output.Error(), HasSubstr("'y'"));
  ModelFile extra;
  extra.Add("MaxPool", {"x"}, "a").add_output("indices");
  extra.Add("Add", {"x", "indices"}, "y");
  EXPECT_FALSE(extra.Import().ok());
  ModelFile wrong_type;
  SetInt(wrong_type.Add("LeakyRelu", {"x"}, "y"), "alpha", 1);
  EXPECT_THAT(wrong_type.Error(), HasSubstr("'alpha' must be a number"));
  ModelFile dynamic;
  dynamic.Add("Cast", {"x"}, "shape");
  SetInt(*dynamic.proto().mutable_graph()->mutable_node(0), "to", kOnnxInt64);
  dynamic.Add("Reshape", {"x", "shape"}, "y");
  EXPECT_THAT(dynamic.Error(), AllOf(HasSubstr("node2"), HasSubstr("'shape' must be known")));
  ModelFile cubic;
  cubic.Weight("s", {2}, {1, 2});
  AttributeProto& mode = *cubic.Add("Upsample", {"x", "s"}, "y").add_attribute();
  mode.set_name("mode");
  mode.set_type(3);
  mode.set_s("cubic");
  EXPECT_THAT(cubic.Error(), HasSubstr("spatial"));
}

TEST(OnnxErrorsTest, TheBatchIsTheOnlySymbol) {
  ModelFile file;
  file.Add("Relu", {"x"}, "y");
  EXPECT_EQ(file.Import()->program.TypeOf(0).shape, (Shape{3, 4}));
  EXPECT_THAT(file.Error({}), AllOf(HasSubstr("'x'"), HasSubstr("'batch'")));
  EXPECT_THAT(file.Error({.batch = -1}), HasSubstr("the batch is -1"));
  EXPECT_THAT(file.Error({.batch = int64_t{1} << 60}), HasSubstr("'x'"));
  EXPECT_THAT(file.Error({.batch = 3, .dtype = DataType::kI64}), HasSubstr("f32 or f64"));
  file.input_shape().mutable_dim(1)->clear_dim_value();
  file.input_shape().mutable_dim(1)->set_dim_param("length");
  EXPECT_THAT(file.Error(), AllOf(HasSubstr("'x'"), HasSubstr("'length'"), HasSubstr("axis 1")));
  ModelFile fixed;
  fixed.Add("Relu", {"x"}, "y");
  fixed.input_shape().mutable_dim(0)->clear_dim_param();
  fixed.input_shape().mutable_dim(0)->set_dim_value(8);
  EXPECT_THAT(fixed.Error(), HasSubstr("batches of 8, asked for is 3"));
  EXPECT_TRUE(fixed.Import({}).ok());
  fixed.input_shape().mutable_dim(0)->set_dim_value(-8);
  EXPECT_FALSE(fixed.Import({}).ok());
}

TEST(OnnxErrorsTest, BytesThatAreNoModel) {
  for (const std::string& bytes :
       {std::string(), std::string("not a model"), std::string(100, '\xff'), std::string("\x3a\x00", 2)}) {
    EXPECT_EQ(ImportOnnx(std::as_bytes(std::span(bytes)), {.batch = 1}).status().code() == absl::StatusCode::kOk,
              false);
  }
  ModelFile file;
  file.Weight("0.weight", {4}, {1, 2, 3, 4});
  file.Add("Mul", {"x", "0.weight"}, "y");
  const std::string whole = file.bytes();
  ASSERT_TRUE(file.Import().ok());
  for (size_t length = 0; length < whole.size(); ++length) {
    const absl::StatusOr<Model> model = ImportOnnx(std::as_bytes(std::span(whole).first(length)), {.batch = 3});
    EXPECT_FALSE(model.ok() && length + 4 < whole.size()) << length;  // the opset comes last
  }
  for (int64_t opset : {6, 22, -1}) EXPECT_THAT(ModelFile(opset).Error(), HasSubstr("opset 7 to 21"));
}

TEST(OnnxErrorsTest, TensorsWhoseSizesLie) {
  const auto With = [](std::vector<int64_t> dims, size_t floats) {
    ModelFile file;
    file.Weight("0.weight", dims, std::vector<float>(floats, 1.0f));
    file.Add("Mul", {"x", "0.weight"}, "y");
    return file.Error();
  };
  EXPECT_THAT(With({5}, 4), AllOf(HasSubstr("0.weight"), HasSubstr("needs 5 elements, the file has 4")));
  EXPECT_THAT(With({int64_t{1} << 40}, 1), HasSubstr("needs 1099511627776 elements"));
  EXPECT_THAT(With({int64_t{1} << 62, 16}, 1), HasSubstr("0.weight"));
  EXPECT_THAT(With({-4}, 4), HasSubstr("0.weight"));
  EXPECT_THAT(With(std::vector<int64_t>(50, 1), 1), HasSubstr("50 dimensions"));
  ModelFile range;
  range.Weight("a", {}, {0});
  range.Weight("b", {}, {1e30f});
  range.Weight("c", {}, {1});
  range.Add("Range", {"a", "b", "c"}, "r");
  range.Add("Add", {"x", "r"}, "y");
  EXPECT_THAT(range.Error(), AllOf(HasSubstr("node1"), HasSubstr("too long")));
}

// Small files that would need a lot of memory or time.
TEST(OnnxErrorsTest, FilesThatGrow) {
  ModelFile identities;
  std::string long_name(200000, 'n');
  identities.Add("Identity", {"x"}, long_name + "0");
  for (int i = 1; i < 50; ++i) identities.Add("Identity", {absl::StrCat(long_name, i - 1)}, absl::StrCat(long_name, i));
  identities.Add("Relu", {absl::StrCat(long_name, 49)}, "y");
  EXPECT_TRUE(identities.Import().ok());
  ModelFile splits;
  std::string previous = "x";
  for (int i = 0; i < 300; ++i) {
    splits.Add("SplitToSequence", {"x"}, absl::StrCat("s", i));
    splits.Add("SequenceAt", {absl::StrCat("s", i), "zero"}, absl::StrCat("p", i));
    splits.Add("Add", {previous, absl::StrCat("p", i)}, i == 299 ? "y" : absl::StrCat("a", i));
    previous = absl::StrCat("a", i);
  }
  splits.Weight("zero", {}, {0});
  splits.input_shape().mutable_dim(1)->set_dim_value(1);
  EXPECT_THAT(splits.Error({.batch = 4095}), HasSubstr("more than 500000 ops"));
  ModelFile tiles;
  tiles.Weight("r", {1}, {}).clear_float_data();
  tiles.proto().mutable_graph()->mutable_initializer(0)->set_data_type(kOnnxInt64);
  tiles.proto().mutable_graph()->mutable_initializer(0)->add_int64_data(1 << 11);
  tiles.Weight("onnx::c", {2}, {1, 2});
  tiles.Add("Tile", {"onnx::c", "r"}, "t0");
  for (int i = 1; i < 40; ++i) {
    tiles.Add("Tile", {"onnx::c", "r"}, absl::StrCat("u", i));
    tiles.Add("Tile", {absl::StrCat("u", i), "r"}, absl::StrCat("v", i));
    tiles.Add("Concat", {absl::StrCat("t", i - 1), absl::StrCat("v", i)}, i == 39 ? "y" : absl::StrCat("t", i));
  }
  for (NodeProto& node : *tiles.proto().mutable_graph()->mutable_node()) {
    if (node.op_type() == "Concat") SetInt(node, "axis", 0);
  }
  EXPECT_THAT(tiles.Error(), HasSubstr("too large to be computed at import"));
  std::string empty_nodes;
  for (int i = 0; i < 4100000; ++i) empty_nodes += std::string("\x0a\x00", 2);
  std::string bytes = "\x3a";
  for (size_t length = empty_nodes.size(); length != 0; length >>= 7) {
    bytes += static_cast<char>((length & 127) | (length >> 7 != 0 ? 128 : 0));
  }
  bytes += empty_nodes;
  EXPECT_THAT(Message(ImportOnnx(std::as_bytes(std::span(bytes)), {.batch = 3}).status()),
              HasSubstr("more than 4000000 parts"));
}

class ExternalDataTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/gantry_onnx_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    std::filesystem::create_directories(folder_ / "model");
    const float values[] = {9, 9, 1, 2, 3, 4};
    for (const char* name : {"model/weights.bin", "secret.bin"}) {
      std::ofstream(folder_ / name, std::ios::binary).write(reinterpret_cast<const char*>(values), sizeof(values));
    }
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  std::string Import(const std::string& location, const std::string& offset = "8", const std::string& length = "16") {
    ModelFile file;
    TensorProto& weight = file.Weight("0.weight", {4}, {});
    weight.set_data_location(1);
    for (const auto& [key, value] :
         {std::pair("location", location), std::pair("offset", offset), std::pair("length", length)}) {
      auto* entry = weight.add_external_data();
      entry->set_key(key);
      entry->set_value(value);
    }
    file.Add("Mul", {"x", "0.weight"}, "y");
    const std::string path = folder_ / "model" / "model.onnx";
    std::ofstream(path, std::ios::binary) << file.bytes();
    EXPECT_THAT(file.Error(), HasSubstr("import the model by its path"));
    const absl::StatusOr<Model> model = ImportOnnxFile(path, {.batch = 3});
    if (!model.ok()) return std::string(Message(model.status()));
    EXPECT_THAT(model->program.FindState("0.weight")->initializer.data, ElementsAre(1, 2, 3, 4));
    return "imported";
  }

  std::filesystem::path folder_;
};

TEST_F(ExternalDataTest, IsReadInsideTheModelsFolderOnly) {
  EXPECT_EQ(Import("weights.bin"), "imported");
  EXPECT_EQ(Import("./weights.bin"), "imported");
  EXPECT_THAT(Import("../secret.bin"), HasSubstr("outside the model's folder"));
  EXPECT_THAT(Import((folder_ / "secret.bin").string()), HasSubstr("outside the model's folder"));
  EXPECT_THAT(Import((folder_ / "model" / "weights.bin").string()), HasSubstr("outside the model's folder"));
  std::filesystem::create_symlink(folder_ / "secret.bin", folder_ / "model" / "link.bin");
  EXPECT_THAT(Import("link.bin"), HasSubstr("outside the model's folder"));
  EXPECT_THAT(Import("none.bin"), HasSubstr("is no file"));
  EXPECT_THAT(Import("."), HasSubstr("outside the model's folder"));
  EXPECT_THAT(Import(""), HasSubstr("no file is named"));
}

TEST_F(ExternalDataTest, SizesAreChecked) {
  EXPECT_THAT(Import("weights.bin", "12"), HasSubstr("has 24 bytes, needed are 16 from offset 12"));
  EXPECT_THAT(Import("weights.bin", "9223372036854775807"), HasSubstr("needed are 16"));
  EXPECT_THAT(Import("weights.bin", "-8"), HasSubstr("not a number of bytes"));
  EXPECT_THAT(Import("weights.bin", "8", "20"), HasSubstr("needs 16 bytes of external data, the file has 20"));
}

TEST(OnnxFileTest, SaysWhichFileIsMissing) {
  const absl::Status status = ImportOnnxFile("/nonexistent/generator.onnx", {.batch = 1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr("/nonexistent/generator.onnx"));
}

}  // namespace
}  // namespace gantry
