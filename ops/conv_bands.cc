#include "ops/conv_bands.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "ops/convolution.h"
#include "ops/infer.h"
#include "ops/kernel_parts.h"

namespace gantry {
namespace {

using infer::Inputs;
using infer::Outputs;

using Kind = ConvKind;

constexpr std::array<std::string_view, 3> kBands = {"conv_bands", "conv_transpose_bands", "conv_weight_grad_bands"};
constexpr std::string_view kPutRows = "put_rows";

Kind KindOf(std::string_view op) { return ConvKindOf(op, kBands); }

// The rows of the first operand that some rows of the result (of g) take, and the pads that the convolution has there.
struct Reads {
  RowSpan rows;
  int64_t pad_begin = 0, pad_end = 0;
};

// `extent`: rows of the whole operand. Every window has a row inside the image (no pad is as large as the window).
Reads ReadsOf(Kind kind, const WindowAxis& axis, int64_t extent, const RowSpan& rows) {
  if (kind != Kind::kTranspose) {
    const int64_t begin = rows.begin * axis.stride - axis.pad_begin, end = (rows.end - 1) * axis.stride - axis.pad_begin + axis.extent();
    return {{std::max<int64_t>(begin, 0), std::min(end, extent)}, std::max<int64_t>(-begin, 0), std::max<int64_t>(end - extent, 0)};
  }
  // Rows are places here, and the operand has a row a window: from the first window that reaches `rows`, or begins there, to the last that
  // begins before their end.
  const int64_t place = rows.begin + axis.pad_begin;
  const int64_t reaching = std::max<int64_t>(place - axis.extent() + axis.stride, 0) / axis.stride;
  const int64_t first = std::min({reaching, place / axis.stride, extent - 1});
  const int64_t last = std::min((rows.end - 1 + axis.pad_begin) / axis.stride, extent - 1);
  const int64_t pad_begin = place - first * axis.stride;
  const int64_t reached = (last - first) * axis.stride + axis.extent() - pad_begin;
  return {{first, last + 1}, pad_begin, std::max<int64_t>(reached - (rows.end - rows.begin), 0)};
}

// An op by bands as what it is a part of, and which part.
struct Part {
  Kind kind = Kind::kConv;
  std::vector<TensorType> inputs, outputs;  // of the whole op
  RowSpan rows;                             // of its result, or of g
  int64_t band = 0;
  Attributes attributes;
  std::vector<int64_t> starts;              // the first row of each of its parts of the first operand, and the end
  int64_t g_first = 0, g_rows = 0;          // the rows that are there of g

  size_t parts() const { return starts.size() - 1; }
  WindowAxis axis() const { return GeometryOf(kConvs[static_cast<int>(kind)], inputs, outputs, attributes).window.spatial(0); }
};

// Of a convolution with {band}, which has passed inference.
Part WholeOf(const KernelRequest& request) {
  Part part{.kind = KindOf(request.op.name), .inputs = {request.inputs.begin(), request.inputs.end()},
            .outputs = {request.outputs.begin(), request.outputs.end()}, .rows = {}, .band = request.attributes.Int("band"),
            .attributes = request.attributes, .starts = {}};
  const bool weight_grad = part.kind == Kind::kWeightGrad;
  part.rows.end = part.g_rows = (weight_grad ? part.inputs[1] : part.outputs[0]).shape[kRowAxis];
  part.starts = {0, part.inputs[0].shape[kRowAxis]};
  return part;
}

// Of one of the ops above, all of it checked.
absl::StatusOr<Part> PartOf(Kind kind, Inputs inputs, const Attributes& attributes) {
  Part part;
  part.kind = kind;
  part.attributes = attributes;
  const bool weight_grad = kind == Kind::kWeightGrad;
  const auto Rows = [&](std::string_view name, int64_t least) { return infer::IntAttribute(attributes, name, least, infer::kMaxElements); };
  GANTRY_ASSIGN_OR_RETURN(part.band, Rows("band", 1));
  GANTRY_ASSIGN_OR_RETURN(part.rows.begin, Rows("row", 0));
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, Rows("count", 1));
  GANTRY_ASSIGN_OR_RETURN(const int64_t first, Rows("first", 0));
  GANTRY_ASSIGN_OR_RETURN(const int64_t extent, Rows("extent", 1));
  GANTRY_ASSIGN_OR_RETURN(const int64_t parts, infer::IntAttribute(attributes, "parts", 1, static_cast<int64_t>(inputs.size()) - 1));
  part.rows.end = part.rows.begin + count;
  part.starts = {first};
  for (const TensorType& rows : inputs.first(parts)) {
    GANTRY_RETURN_IF_ERROR(infer::RequireRank(rows, "a part", 3, 5));
    if (!(WithDim(rows, kRowAxis, extent) == WithDim(inputs[0], kRowAxis, extent))) {
      return absl::InvalidArgumentError(absl::StrFormat("%s and %s are no rows of one tensor", inputs[0].ToString(), rows.ToString()));
    }
    part.starts.push_back(part.starts.back() + rows.shape[kRowAxis]);
  }
  const Inputs rest = inputs.subspan(parts);
  if (rest.size() > 2) return absl::InvalidArgumentError(absl::StrFormat("there are %d inputs behind %d parts", rest.size(), parts));
  part.inputs = {WithDim(inputs[0], kRowAxis, extent), rest[0]};
  if (weight_grad) {
    GANTRY_RETURN_IF_ERROR(infer::RequireRank(rest[0], "g", inputs[0].shape.rank(), inputs[0].shape.rank()));
    GANTRY_ASSIGN_OR_RETURN(part.g_first, Rows("g_first", 0));
    GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> kernel,
                            infer::IntsAttribute(attributes, "kernel", inputs[0].shape.rank() - 2, 1, INT32_MAX));
    GANTRY_ASSIGN_OR_RETURN(const Window window, ParseWindow(attributes, kernel));
    GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> windows, WindowCounts(window, SpatialDims(part.inputs[0].shape)));
    part.g_rows = rest[0].shape[kRowAxis];
    part.inputs[1] = WithDim(rest[0], kRowAxis, windows[0]);
  } else if (rest.size() > 1) {
    part.inputs.push_back(rest[1]);
  }
  GANTRY_ASSIGN_OR_RETURN(part.outputs, FindOp(kConvs[static_cast<int>(kind)])->infer(part.inputs, attributes));
  const int64_t rows = (weight_grad ? part.inputs[1] : part.outputs[0]).shape[kRowAxis];
  if (part.rows.end > rows || part.rows.begin % part.band != 0 || (count % part.band != 0 && part.rows.end != rows)) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d to %d are no bands of %d of %d rows", part.rows.begin, part.rows.end, part.band, rows));
  }
  if (weight_grad) {
    if (part.rows.begin < part.g_first || part.rows.end > part.g_first + part.g_rows) {
      return absl::InvalidArgumentError(absl::StrFormat("rows %d to %d are not all there of g", part.rows.begin, part.rows.end));
    }
    if (rest.size() > 1) GANTRY_RETURN_IF_ERROR(infer::RequireShape(rest[1], "the sum", part.outputs[0].shape));
  }
  const Reads reads = ReadsOf(kind, part.axis(), extent, part.rows);
  if (reads.rows.begin < first || reads.rows.end > part.starts.back() || part.starts.back() > extent) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d to %d of %d are read, and %d to %d are there", reads.rows.begin, reads.rows.end,
                                                      extent, first, part.starts.back()));
  }
  return part;
}

template <Kind kKind>
Outputs InferBands(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const Part part, PartOf(kKind, inputs, attributes));
  if (kKind == Kind::kWeightGrad) return part.outputs;
  return std::vector<TensorType>{WithDim(part.outputs[0], kRowAxis, part.rows.end - part.rows.begin)};
}

template <Kind kKind>
Cost CostOfBands(Inputs inputs, std::span<const TensorType>, const Attributes& attributes) {
  const auto part = PartOf(kKind, inputs, attributes);
  if (!part.ok()) return {};
  Cost cost = FindOp(kConvs[static_cast<int>(kKind)])->cost(part->inputs, part->outputs, attributes);
  const TensorType& banded = kKind == Kind::kWeightGrad ? part->inputs[1] : part->outputs[0];
  cost.flops *= static_cast<double>(part->rows.end - part->rows.begin) / static_cast<double>(banded.shape[kRowAxis]);
  return cost;
}

Outputs InferPut(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "the part", 3, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(const int64_t begin, infer::IntAttribute(attributes, "begin", 0, infer::kMaxElements));
  GANTRY_ASSIGN_OR_RETURN(const int64_t extent, infer::IntAttribute(attributes, "extent", 1, infer::kMaxElements));
  if (begin + inputs[0].shape[kRowAxis] > extent) {
    return absl::InvalidArgumentError(absl::StrFormat("there are no rows of %s at %d of %d", inputs[0].ToString(), begin, extent));
  }
  const TensorType whole = WithDim(inputs[0], kRowAxis, extent);
  if (inputs.size() > 1 && !(inputs[1] == whole)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is no part of %s", inputs[0].ToString(), inputs[1].ToString()));
  }
  return std::vector<TensorType>{whole};
}

// --- kernels --------------------------------------------------------------------------------------------------------

// Rows of a tensor that is there in runs of rows, each in planes (of batch and channels).
class RowRuns {
 public:
  RowRuns(const TensorType& whole, std::vector<int64_t> starts, int threads)
      : starts_(std::move(starts)), planes_(whole.shape[0] * whole.shape[1]),
        row_bytes_(whole.size_bytes() / std::max<int64_t>(planes_ * whole.shape[kRowAxis], 1)), threads_(threads) {}

  int64_t Bytes(const RowSpan& rows) const { return planes_ * (rows.end - rows.begin) * row_bytes_; }
  // Whether a run is exactly these rows.
  bool IsRun(const RowSpan& rows) const {
    const auto start = std::find(starts_.begin(), starts_.end() - 1, rows.begin);
    return start != starts_.end() - 1 && *(start + 1) == rows.end;
  }
  // These rows: a run, or a copy in `scratch`.
  const void* Take(std::span<const void* const> runs, const RowSpan& rows, void* scratch) const {
    for (size_t run = 0; run < runs.size(); ++run) {
      if (starts_[run] == rows.begin && starts_[run + 1] == rows.end) return runs[run];
    }
    for (size_t run = 0; run < runs.size(); ++run) {
      const int64_t begin = std::max(starts_[run], rows.begin), end = std::min(starts_[run + 1], rows.end);
      if (begin >= end) continue;
      Copy(static_cast<const std::byte*>(runs[run]) + (begin - starts_[run]) * row_bytes_, starts_[run + 1] - starts_[run],
           static_cast<std::byte*>(scratch) + (begin - rows.begin) * row_bytes_, rows.end - rows.begin, end - begin);
    }
    return scratch;
  }
  // Into the only run.
  void Put(const void* part, const RowSpan& rows, void* run) const {
    Copy(static_cast<const std::byte*>(part), rows.end - rows.begin, static_cast<std::byte*>(run) + (rows.begin - starts_[0]) * row_bytes_,
         starts_[1] - starts_[0], rows.end - rows.begin);
  }

 private:
  void Copy(const std::byte* from, int64_t from_rows, std::byte* to, int64_t to_rows, int64_t rows) const {
    ParallelFor(threads_, planes_, [&](int64_t plane) {
      std::memcpy(to + plane * to_rows * row_bytes_, from + plane * from_rows * row_bytes_, static_cast<size_t>(rows * row_bytes_));
    });
  }

  const std::vector<int64_t> starts_;
  const int64_t planes_, row_bytes_;
  const int threads_;
};

class BandsKernel final : public Kernel {
 public:
  static absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request, const KernelFactory& make) {
    const bool whole = request.op.name == kConvs[static_cast<int>(KindOf(request.op.name))];
    Part part;
    if (whole) {
      part = WholeOf(request);
    } else {
      GANTRY_ASSIGN_OR_RETURN(part, PartOf(KindOf(request.op.name), request.inputs, request.attributes));
    }
    std::unique_ptr<BandsKernel> kernel(new BandsKernel(part, request));
    GANTRY_ASSIGN_OR_RETURN(const bool made, kernel->MakeBands(part, request, make));
    if (!made) return nullptr;
    return kernel;
  }

  size_t scratch_bytes() const override { return kernel_scratch_ + operand_scratch_ + side_scratch_ + sum_scratch_; }
  std::string_view implementation() const override { return implementation_; }

  absl::Status Run(const KernelArguments& arguments) override {
    auto* const operand_slice = static_cast<std::byte*>(arguments.scratch) + kernel_scratch_;
    std::byte* const side_slice = operand_slice + operand_scratch_;
    std::byte* const addend = side_slice + side_scratch_;
    const std::span<const void* const> runs = arguments.inputs.first(parts_), rest = arguments.inputs.subspan(parts_);
    void* const out = arguments.outputs[0];
    const bool weight_grad = kind_ == Kind::kWeightGrad, has_sum = weight_grad && rest.size() > 1;
    if (has_sum && rest[1] != out) std::memcpy(out, rest[1], out_bytes_);
    for (const Band& band : bands_) {
      const void* inputs[3] = {operand_.Take(runs, band.reads, operand_slice), rest[0], nullptr};
      void* result = out;
      bool adds = false;
      if (weight_grad) {
        inputs[1] = side_.Take(rest.first(1), band.rows, side_slice);
        adds = has_sum || &band != &bands_.front();
        if (adds) result = addend;
      } else {
        if (rest.size() > 1) inputs[2] = rest[1];
        if (!side_.IsRun(band.rows)) result = side_slice;
      }
      void* const outputs[1] = {result};
      const size_t input_count = weight_grad ? 2 : 1 + rest.size();
      GANTRY_RETURN_IF_ERROR(kernels_[band.kernel]->Run({{inputs, input_count}, outputs, arguments.scratch}));
      if (adds) AddTo(dtype_, out, addend, static_cast<int64_t>(out_bytes_ / SizeBytes(dtype_)), threads_);
      if (!weight_grad && result != out) side_.Put(side_slice, band.rows, out);
    }
    return absl::OkStatus();
  }

 private:
  struct Band {
    RowSpan rows, reads;
    size_t kernel;
  };

  BandsKernel(const Part& part, const KernelRequest& request)
      : kind_(part.kind), threads_(request.thread_count), parts_(part.parts()), dtype_(request.outputs[0].dtype),
        out_bytes_(request.outputs[0].size_bytes()), operand_(part.inputs[0], part.starts, threads_),
        side_(kind_ == Kind::kWeightGrad ? RowRuns(part.inputs[1], {part.g_first, part.g_first + part.g_rows}, threads_)
                                         : RowRuns(part.outputs[0], {part.rows.begin, part.rows.end}, threads_)) {}

  // False where a band has no kernel.
  absl::StatusOr<bool> MakeBands(const Part& part, const KernelRequest& request, const KernelFactory& make) {
    const bool weight_grad = kind_ == Kind::kWeightGrad;
    const OpDefinition& whole = *FindOp(kConvs[static_cast<int>(kind_)]);
    const WindowAxis axis = part.axis();
    std::map<std::array<int64_t, 4>, size_t> made;  // by rows, rows read and pads
    size_t kernel_scratch = 0, operand_scratch = 0, side_scratch = 0;
    for (int64_t begin = part.rows.begin; begin < part.rows.end; begin += part.band) {
      const RowSpan rows{begin, std::min(begin + part.band, part.rows.end)};
      const Reads reads = ReadsOf(kind_, axis, part.inputs[0].shape[kRowAxis], rows);
      const std::array<int64_t, 4> form = {rows.end - rows.begin, reads.rows.end - reads.rows.begin, reads.pad_begin, reads.pad_end};
      const auto [place, is_new] = made.emplace(form, kernels_.size());
      bands_.push_back({rows, reads.rows, place->second});
      if (!operand_.IsRun(reads.rows)) operand_scratch = std::max<size_t>(operand_scratch, operand_.Bytes(reads.rows));
      if (!side_.IsRun(rows)) side_scratch = std::max<size_t>(side_scratch, side_.Bytes(rows));
      if (!is_new) continue;
      std::vector<TensorType> inputs = part.inputs, outputs = part.outputs;
      inputs[0] = WithDim(inputs[0], kRowAxis, form[1]);
      TensorType& side = weight_grad ? inputs[1] : outputs[0];
      side = WithDim(side, kRowAxis, form[0]);
      Attributes attributes = request.attributes;
      const size_t rank = part.inputs[0].shape.rank() - 2;
      std::vector<int64_t> pads = attributes.Ints("pads"), spatial = attributes.Ints("output_spatial");
      pads.resize(2 * rank, 0);
      pads[0] = reads.pad_begin, pads[rank] = reads.pad_end;
      attributes.Set("pads", std::move(pads));
      if (kind_ == Kind::kTranspose) {
        spatial[0] = form[0];
        attributes.Set("output_spatial", std::move(spatial));
      }
      GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, make({whole, attributes, inputs, outputs, threads_}));
      if (kernel == nullptr) return false;
      kernel_scratch = std::max(kernel_scratch, kernel->scratch_bytes());
      kernels_.push_back(std::move(kernel));
    }
    kernel_scratch_ = AlignedBytes(kernel_scratch);
    operand_scratch_ = AlignedBytes(operand_scratch);
    side_scratch_ = AlignedBytes(side_scratch);
    const bool has_sum = weight_grad && request.inputs.size() > parts_ + 1;
    if (weight_grad && (has_sum || bands_.size() > 1)) sum_scratch_ = AlignedBytes(out_bytes_);
    implementation_ = std::string(kernels_[0]->implementation()) + ", in bands";
    return true;
  }

  const Kind kind_;
  const int threads_;
  const size_t parts_;
  const DataType dtype_;
  const size_t out_bytes_;
  const RowRuns operand_, side_;  // side: the result, or g
  std::vector<Band> bands_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  size_t kernel_scratch_ = 0, operand_scratch_ = 0, side_scratch_ = 0, sum_scratch_ = 0;
  std::string implementation_;
};

class PutRowsKernel final : public Kernel {
 public:
  explicit PutRowsKernel(const KernelRequest& request)
      : begin_(request.attributes.Int("begin")), rows_(request.inputs[0].shape[kRowAxis]), out_bytes_(request.outputs[0].size_bytes()),
        whole_(request.outputs[0], {0, request.outputs[0].shape[kRowAxis]}, request.thread_count) {}
  std::string_view implementation() const override { return "copy"; }
  absl::Status Run(const KernelArguments& arguments) override {
    void* const out = arguments.outputs[0];
    if (arguments.inputs.size() < 2) {
      std::memset(out, 0, out_bytes_);
    } else if (arguments.inputs[1] != out) {
      std::memcpy(out, arguments.inputs[1], out_bytes_);
    }
    whole_.Put(arguments.inputs[0], {begin_, begin_ + rows_}, out);
    return absl::OkStatus();
  }

 private:
  const int64_t begin_, rows_;
  const size_t out_bytes_;
  const RowRuns whole_;
};

}  // namespace

bool IsByBands(const OpDefinition& op, const Attributes& attributes) {
  if (op.name == kPutRows || std::find(kBands.begin(), kBands.end(), op.name) != kBands.end()) return true;
  return attributes.Has("band") && std::find(kConvs.begin(), kConvs.end(), op.name) != kConvs.end();
}

absl::StatusOr<std::unique_ptr<Kernel>> MakePartsKernel(const KernelRequest& request, const KernelFactory& make) {
  if (request.op.name == kPutRows) return std::make_unique<PutRowsKernel>(request);
  const auto ByBands = [&](const KernelRequest& part) { return IsByBands(part.op, part.attributes) ? BandsKernel::Make(part, make) : make(part); };
  return IsByRows(request.op, request.attributes) ? MakeRowsKernel(request, ByBands) : ByBands(request);
}

RowSpan RowsRead(std::string_view op, std::span<const TensorType> inputs, std::span<const TensorType> outputs, const Attributes& attributes,
                 const RowSpan& rows) {
  const ConvGeometry geometry = GeometryOf(op, inputs, outputs, attributes);
  return ReadsOf(KindOf(op), geometry.window.spatial(0), inputs[0].shape[kRowAxis], rows).rows;
}

std::vector<OpDefinition> ConvBandsOps() {
  return {
      {.name = kBands[0], .min_inputs = 2, .max_inputs = -1, .infer = InferBands<Kind::kConv>, .cost = CostOfBands<Kind::kConv>,
       .planner_only = true},
      {.name = kBands[1], .min_inputs = 2, .max_inputs = -1, .infer = InferBands<Kind::kTranspose>, .cost = CostOfBands<Kind::kTranspose>,
       .planner_only = true},
      {.name = kBands[2], .min_inputs = 2, .max_inputs = -1, .infer = InferBands<Kind::kWeightGrad>, .cost = CostOfBands<Kind::kWeightGrad>,
       .planner_only = true},
      {.name = kPutRows, .min_inputs = 1, .max_inputs = 2, .infer = InferPut, .in_place = {{0, 1}}, .planner_only = true},
  };
}

}  // namespace gantry
