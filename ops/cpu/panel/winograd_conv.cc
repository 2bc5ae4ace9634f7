#include "ops/cpu/panel/winograd_conv.h"

#include <algorithm>
#include <cstring>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "memory/cpu/parallel.h"
#include "ops/cpu/panel/direct_conv.h"

namespace gantry::cpu::winograd {
namespace {

// Between the arrays of neighbouring points: an odd number of cache lines, so that they do not share a cache set.
constexpr int64_t kPointGap = 5 * 16;
// Transformed tiles that are in flight at once should stay in the last-level cache.
constexpr int64_t kBlockFloats = int64_t{2} << 20;
// Transformed input panels of a weight-gradient task should stay near the second-level cache.
constexpr int64_t kGroupFloats = 640 << 10;

// Packed weights of so many bytes and more leave a core's caches before they are read.
constexpr int64_t kPastCachesBytes = int64_t{1} << 20;

// One a task, not one a transform: that takes a tenth of the packing.
void StoreFence() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

// Where everything lies for one geometry and tile size.
struct Tiling {
  const ConvGeometry& g;
  const WinogradKernels& transforms;
  int64_t m = transforms.outputs;  // of a tile, per dimension
  int64_t taps = transforms.taps;  // of a phase, per dimension
  int64_t points = m + taps - 1;
  int64_t all_points = points * points;
  int64_t stride = g.stride_h;
  int64_t phases = stride * stride;
  int64_t in_panels = PanelCount(g.in_channels);
  int64_t out_panels = PanelCount(g.out_channels);
  int64_t phase_panels = phases * in_panels;
  int64_t panel_floats = g.batch * 16;
  // Of the images, which may be part of a larger batch.
  int64_t input_floats = panel_floats, output_floats = panel_floats;
  int64_t pixel_panels = out_panels;  // of the output, which may have more channels
  int64_t tiles_y = (g.out_h + m - 1) / m;
  int64_t tiles_x = (g.out_w + m - 1) / m;
  int64_t tiles = tiles_y * tiles_x;
  // Whether the last tile has one output in a dimension, and the input ends with what that output sees.
  bool single_y = transforms.has_singles() && g.out_h % m == 1 && stride * (g.out_h + 1) - g.pad_top >= g.in_h;
  bool single_x = transforms.has_singles() && g.out_w % m == 1 && stride * (g.out_w + 1) - g.pad_left >= g.in_w;

  int64_t block_tiles() const {
    const int64_t tile_floats = all_points * panel_floats * (phase_panels + out_panels);
    const int64_t most = std::clamp<int64_t>(kBlockFloats / tile_floats, 1, tiles);
    const int64_t blocks = (tiles + most - 1) / most;
    return (tiles + blocks - 1) / blocks;
  }
  // Whether a product of this tile and point enters any result. Only the last output of a tile, per dimension, depends on the
  // last point, and the last tile may lack it; a tile of a single output has the first and the last point.
  bool Needs(int64_t tile, int64_t point) const {
    const int64_t row = point / points, column = point % points;
    const bool row_missing = tile / tiles_x == tiles_y - 1 &&
                             (single_y ? row != 0 && row != points - 1 : row == points - 1 && g.out_h % m != 0);
    const bool column_missing = tile % tiles_x == tiles_x - 1 &&
                                (single_x ? column != 0 && column != points - 1 : column == points - 1 && g.out_w % m != 0);
    return !row_missing && !column_missing;
  }
  // The one of four transforms for this tile.
  WinogradKernels::Function Of(const WinogradKernels::Function (&functions)[2][2], int64_t tile) const {
    return functions[single_y && tile / tiles_x == tiles_y - 1][single_x && tile % tiles_x == tiles_x - 1];
  }
  // Floats between the points of an array of `tile_count` x `panels` panels.
  int64_t point_stride(int64_t tile_count, int64_t panels) const {
    return tile_count * panels * panel_floats + kPointGap;
  }
};

// The input pixels that a tile sees in one phase: sources[k] is that pixel's panel `panel`, null outside the image.
template <typename Pointer>
void InputPatch(const Tiling& t, Pointer image, int64_t tile, int64_t phase, int64_t panel, Pointer* patch) {
  const int64_t first_y = t.stride * t.m * (tile / t.tiles_x) - t.g.pad_top + phase / t.stride;
  const int64_t first_x = t.stride * t.m * (tile % t.tiles_x) - t.g.pad_left + phase % t.stride;
  for (int64_t i = 0; i < t.points; ++i) {
    for (int64_t j = 0; j < t.points; ++j) {
      const int64_t y = first_y + t.stride * i;
      const int64_t x = first_x + t.stride * j;
      const bool inside = y >= 0 && y < t.g.in_h && x >= 0 && x < t.g.in_w;
      patch[i * t.points + j] = inside ? image + ((y * t.g.in_w + x) * t.in_panels + panel) * t.input_floats : nullptr;
    }
  }
}

// The output pixels of a tile, null outside the image.
template <typename Pointer>
void OutputPatch(const Tiling& t, Pointer image, int64_t tile, int64_t panel, Pointer* patch) {
  for (int64_t i = 0; i < t.m; ++i) {
    for (int64_t j = 0; j < t.m; ++j) {
      const int64_t y = tile / t.tiles_x * t.m + i;
      const int64_t x = tile % t.tiles_x * t.m + j;
      const bool inside = y < t.g.out_h && x < t.g.out_w;
      patch[i * t.m + j] = inside ? image + ((y * t.g.out_w + x) * t.pixel_panels + panel) * t.output_floats : nullptr;
    }
  }
}

void ReplaceNull(const float** pointers, int64_t count, const float* zeros) {
  for (int64_t i = 0; i < count; ++i) {
    if (pointers[i] == nullptr) pointers[i] = zeros;
  }
}

// Transforms one panel of one tile's input (of one phase) to `result` + point * point_stride.
void TransformInput(const Tiling& t, const WinogradKernels& transforms, const float* input, const float* zeros,
                    int64_t tile, int64_t phase, int64_t panel, float* result, int64_t point_stride) {
  const float* sources[kMostPoints];
  float* results[kMostPoints];
  InputPatch(t, input, tile, phase, panel, sources);
  ReplaceNull(sources, t.all_points, zeros);
  for (int64_t p = 0; p < t.all_points; ++p) results[p] = result + p * point_stride;
  t.Of(transforms.input, tile)(t.panel_floats, sources, results, nullptr);
}

void TransformOutputGradient(const Tiling& t, const WinogradKernels& transforms, const float* output_gradient,
                             const float* zeros, int64_t tile, int64_t panel, float* result, int64_t point_stride) {
  const float* sources[kMostPoints];
  float* results[kMostPoints];
  OutputPatch(t, output_gradient, tile, panel, sources);
  ReplaceNull(sources, t.m * t.m, zeros);
  for (int64_t p = 0; p < t.all_points; ++p) results[p] = result + p * point_stride;
  t.Of(transforms.output_adjoint, tile)(t.panel_floats, sources, results, nullptr);
}

// Where the block (source panel, result panel) of one point's weights lies: chunk by chunk of source panels, as they
// are read.
int64_t PackedPanel(int64_t source, int64_t result, int64_t source_panels, int64_t result_panels) {
  const int64_t chunk = source / kChunkPanels * kChunkPanels;
  return chunk * result_panels + result * std::min(kChunkPanels, source_panels - chunk) + source - chunk;
}

// products[point][tile][result panel] = sums[point][tile][source panel] times weights[point][result panel][source
// panel].
struct PointProducts {
  const Tiling& tiling;
  int64_t first_tile, tiles, source_panels, result_panels, k_count;
  const float* sources;
  int64_t source_point_stride;
  const float* weights;
  float* results;
  int64_t result_point_stride;
};

// The products of `point` for result panels [first, last).
void RunPoint(const PointProducts& p, const PanelKernels& kernels, int64_t point, int64_t first, int64_t last) {
  const int64_t panel_floats = p.tiling.panel_floats;
  const float* sources = p.sources + point * p.source_point_stride;
  const float* weights = p.weights + point * p.result_panels * p.source_panels * 256;
  float* results = p.results + point * p.result_point_stride;
  int64_t offsets[kChunkPanels];
  for (int64_t i = 0; i < kChunkPanels; ++i) offsets[i] = i * 256;
  for (int64_t chunk = 0; chunk < p.source_panels; chunk += kChunkPanels) {
    const int64_t count = std::min(kChunkPanels, p.source_panels - chunk);
    for (int64_t panel = first; panel < last;) {
      const bool pair = kernels.gemm_pair != nullptr && panel + 1 < last;
      const float* b = weights + PackedPanel(chunk, panel, p.source_panels, p.result_panels) * 256;
      const float* next_b = b + (pair ? 2 : 1) * count * 256;
      for (int64_t tile = 0; tile < p.tiles; ++tile) {
        if (!p.tiling.Needs(p.first_tile + tile, point)) continue;
        const float* panels[kChunkPanels];
        for (int64_t i = 0; i < count; ++i) panels[i] = sources + (tile * p.source_panels + chunk + i) * panel_floats;
        float* c = results + (tile * p.result_panels + panel) * panel_floats;
        if (pair) {
          kernels.gemm_pair(p.tiling.g.batch, count, panels, b, count * 256, offsets, p.k_count, c, panel_floats, chunk > 0,
                            nullptr, 1.0f, next_b);
        } else {
          kernels.gemm(p.tiling.g.batch, count, panels, b, offsets, p.k_count, c, chunk > 0, nullptr, 1.0f, next_b);
        }
        next_b = nullptr;
      }
      panel += pair ? 2 : 1;
    }
  }
}

// Each thread has a run of (point, two result panels) of the same work: the points differ in the tiles that need them.
void RunPointProducts(const PointProducts& p, const PanelKernels& kernels, int thread_count) {
  const int64_t points = p.tiling.all_points;
  int64_t tiles[kMostPoints];
  int64_t work = 0;
  for (int64_t point = 0; point < points; ++point) {
    tiles[point] = 0;
    for (int64_t tile = 0; tile < p.tiles; ++tile) tiles[point] += p.tiling.Needs(p.first_tile + tile, point) ? 1 : 0;
    work += tiles[point] * p.result_panels;
  }
  const int64_t shares = std::max(thread_count, 1);
  ParallelFor(thread_count, shares, [&](int64_t share) {
    // What begins in [begin, end) of all work, in order.
    const int64_t begin = work * share / shares, end = work * (share + 1) / shares;
    const auto first_from = [&](int64_t before, int64_t point, int64_t limit) {
      if (limit <= before) return int64_t{0};
      const int64_t per_pair = 2 * tiles[point];
      return std::min((limit - before + per_pair - 1) / per_pair * 2, p.result_panels);
    };
    int64_t before = 0;  // the work of earlier points
    for (int64_t point = 0; point < points; ++point) {
      if (tiles[point] == 0) continue;
      RunPoint(p, kernels, point, first_from(before, point, begin), first_from(before, point, end));
      before += tiles[point] * p.result_panels;
    }
  });
}

// Transforms every (out panel, in panel, phase) block of the weights to packed + offset(out panel, phase, in panel),
// its points `point_stride` apart.
template <typename Offset>
void Pack(const ConvGeometry& g, const PanelKernels& kernels, const WinogradKernels& transforms, const float* weights,
          bool rows_are_inputs, const Offset& offset, float* packed, int thread_count) {
  const Tiling t{g, transforms};
  const int64_t point_floats = t.out_panels * t.phase_panels * 256;
  const bool past_caches = WeightFloats(g, transforms) * static_cast<int64_t>(sizeof(float)) >= kPastCachesBytes &&
                           reinterpret_cast<uintptr_t>(packed) % 64 == 0;
  const WinogradKernels::Function transform = past_caches ? transforms.weight_past_caches : transforms.weight;
  ParallelFor(thread_count, t.out_panels * t.in_panels, [&](int64_t task) {
    alignas(64) float blocks[kMostPoints * 256];
    // Neighbouring tasks write neighbouring blocks.
    const int64_t out_panel = rows_are_inputs ? task / t.in_panels : task % t.out_panels;
    const int64_t in_panel = rows_are_inputs ? task % t.in_panels : task / t.out_panels;
    direct::GatherWeights(g, kernels, weights, out_panel, in_panel, rows_are_inputs, blocks, 256);
    for (int64_t phase = 0; phase < t.phases; ++phase) {
      const float* sources[kMostPoints];
      float* results[kMostPoints];
      for (int64_t i = 0; i < t.taps; ++i) {
        for (int64_t j = 0; j < t.taps; ++j) {
          sources[i * t.taps + j] =
              blocks + ((phase / t.stride + t.stride * i) * g.kernel_w + phase % t.stride + t.stride * j) * 256;
        }
      }
      for (int64_t p = 0; p < t.all_points; ++p) {
        results[p] = packed + p * point_floats + offset(out_panel, phase * t.in_panels + in_panel);
      }
      transform(256, sources, results, nullptr);
    }
    if (past_caches) StoreFence();
  });
}

float* PanelBias(const Epilogue& epilogue, int64_t panel, int64_t channels, float (&copy)[16]) {
  if (epilogue.bias == nullptr) return nullptr;
  for (int64_t c = 0; c < 16; ++c) copy[c] = panel * 16 + c < channels ? epilogue.bias[panel * 16 + c] : 0.0f;
  return copy;
}

bool HasEpilogue(const Epilogue& epilogue) { return epilogue.bias != nullptr || epilogue.slope != 1.0f; }

}  // namespace

bool Supports(const ConvGeometry& g, const WinogradKernels& transforms) {
  if (g.stride_h != g.stride_w || g.kernel_h != g.kernel_w || g.dilation_h != 1 || g.dilation_w != 1) return false;
  if (g.stride_h > 2 || g.kernel_h != transforms.taps * g.stride_h || g.pad_top < 0 || g.pad_left < 0) return false;
  const Tiling t{g, transforms};
  // The first input row (column) behind what the last tile sees.
  const int64_t end_y = t.stride * (t.m * (t.tiles_y - 1) + t.points) - g.pad_top;
  const int64_t end_x = t.stride * (t.m * (t.tiles_x - 1) + t.points) - g.pad_left;
  return end_y >= g.in_h && end_x >= g.in_w;
}

int64_t WeightFloats(const ConvGeometry& g, const WinogradKernels& transforms) {
  const Tiling t{g, transforms};
  return t.all_points * t.out_panels * t.phase_panels * 256;
}

void PackForward(const ConvGeometry& g, const PanelKernels& kernels, const WinogradKernels& transforms,
                 const float* weights, float* packed, int thread_count) {
  const int64_t phase_panels = g.stride_h * g.stride_w * PanelCount(g.in_channels);
  const int64_t out_panels = PanelCount(g.out_channels);
  Pack(
      g, kernels, transforms, weights, true,
      [=](int64_t out_panel, int64_t phase_panel) {
        return PackedPanel(phase_panel, out_panel, phase_panels, out_panels) * 256;
      },
      packed, thread_count);
}

void PackInputGradient(const ConvGeometry& g, const PanelKernels& kernels, const WinogradKernels& transforms,
                       const float* weights, float* packed, int thread_count) {
  const int64_t phase_panels = g.stride_h * g.stride_w * PanelCount(g.in_channels);
  const int64_t out_panels = PanelCount(g.out_channels);
  Pack(
      g, kernels, transforms, weights, false,
      [=](int64_t out_panel, int64_t phase_panel) {
        return PackedPanel(out_panel, phase_panel, out_panels, phase_panels) * 256;
      },
      packed, thread_count);
}

int64_t ImageScratchFloats(const ConvGeometry& g, const WinogradKernels& transforms) {
  const Tiling t{g, transforms};
  const int64_t tiles = t.block_tiles();
  return t.panel_floats + t.all_points * (t.point_stride(tiles, t.phase_panels) + t.point_stride(tiles, t.out_panels));
}

void Forward(const ConvGeometry& g, const PanelKernels& kernels, const WinogradKernels& transforms, const float* input,
             const float* packed, const Epilogue& epilogue, float* output, float* scratch, int thread_count) {
  const Tiling t{g, transforms};
  const int64_t block_tiles = t.block_tiles();
  const int64_t input_stride = t.point_stride(block_tiles, t.phase_panels);
  const int64_t product_stride = t.point_stride(block_tiles, t.out_panels);
  float* zeros = scratch;
  float* inputs = zeros + t.panel_floats;                  // [point][tile][phase][in panel][batch][16]
  float* products = inputs + t.all_points * input_stride;  // [point][tile][out panel][batch][16]
  std::memset(zeros, 0, t.panel_floats * sizeof(float));
  const bool finish = HasEpilogue(epilogue);

  for (int64_t first_tile = 0; first_tile < t.tiles; first_tile += block_tiles) {
    const int64_t tile_count = std::min(block_tiles, t.tiles - first_tile);
    ParallelFor(thread_count, tile_count * t.phase_panels, [&](int64_t task) {
      const int64_t phase_panel = task % t.phase_panels;
      TransformInput(t, transforms, input, zeros, first_tile + task / t.phase_panels, phase_panel / t.in_panels,
                     phase_panel % t.in_panels, inputs + task * t.panel_floats, input_stride);
    });
    RunPointProducts({.tiling = t,
                      .first_tile = first_tile,
                      .tiles = tile_count,
                      .source_panels = t.phase_panels,
                      .result_panels = t.out_panels,
                      .k_count = std::min<int64_t>(16, g.in_channels),
                      .sources = inputs,
                      .source_point_stride = input_stride,
                      .weights = packed,
                      .results = products,
                      .result_point_stride = product_stride},
                     kernels, thread_count);
    ParallelFor(thread_count, tile_count * t.out_panels, [&](int64_t task) {
      const int64_t panel = task % t.out_panels;
      const float* sources[kMostPoints];
      float* results[kMostPoints];
      float bias[16];
      uint8_t modes[kMostPoints];
      std::fill_n(modes, kMostPoints, finish ? kApplyEpilogue : 0);
      const int64_t tile = first_tile + task / t.out_panels;
      for (int64_t p = 0; p < t.all_points; ++p) {
        sources[p] = t.Needs(tile, p) ? products + p * product_stride + task * t.panel_floats : zeros;
      }
      OutputPatch(t, output, tile, panel, results);
      const TransformFinish last{modes, PanelBias(epilogue, panel, g.out_channels, bias), epilogue.slope};
      t.Of(transforms.output, tile)(t.panel_floats, sources, results, &last);
    });
  }
}

void InputGradient(const ConvGeometry& g, const PanelKernels& kernels, const WinogradKernels& transforms,
                   const float* output_gradient, const float* packed, const Epilogue& epilogue, float* input_gradient,
                   float* scratch, int thread_count) {
  const Tiling t{g, transforms};
  const int64_t block_tiles = t.block_tiles();
  const int64_t gradient_stride = t.point_stride(block_tiles, t.out_panels);
  const int64_t product_stride = t.point_stride(block_tiles, t.phase_panels);
  float* zeros = scratch;
  float* gradients = zeros + t.panel_floats;                     // [point][tile][out panel][batch][16]
  float* products = gradients + t.all_points * gradient_stride;  // [point][tile][phase][in panel][batch][16]
  std::memset(zeros, 0, t.panel_floats * sizeof(float));
  const uint8_t epilogue_mode = HasEpilogue(epilogue) ? kApplyEpilogue : 0;

  for (int64_t first_tile = 0; first_tile < t.tiles; first_tile += block_tiles) {
    const int64_t tile_count = std::min(block_tiles, t.tiles - first_tile);
    ParallelFor(thread_count, tile_count * t.out_panels, [&](int64_t task) {
      TransformOutputGradient(t, transforms, output_gradient, zeros, first_tile + task / t.out_panels,
                              task % t.out_panels, gradients + task * t.panel_floats, gradient_stride);
    });
    RunPointProducts({.tiling = t,
                      .first_tile = first_tile,
                      .tiles = tile_count,
                      .source_panels = t.out_panels,
                      .result_panels = t.phase_panels,
                      .k_count = std::min<int64_t>(16, g.out_channels),
                      .sources = gradients,
                      .source_point_stride = gradient_stride,
                      .weights = packed,
                      .results = products,
                      .result_point_stride = product_stride},
                     kernels, thread_count);
    // Patches of neighbouring tiles share taps - 1 rows and columns. A task has one panel and phase of all tiles, in
    // order: the first tile of a pixel stores, later ones add, the last one applies the epilogue.
    ParallelFor(thread_count, t.phase_panels, [&](int64_t phase_panel) {
      const int64_t panel = phase_panel % t.in_panels;
      const float* sources[kMostPoints];
      float* results[kMostPoints];
      float bias[16];
      uint8_t modes[kMostPoints];
      const TransformFinish finish{modes, PanelBias(epilogue, panel, g.in_channels, bias), epilogue.slope};
      for (int64_t i = 0; i < tile_count; ++i) {
        const int64_t tile = first_tile + i;
        const int64_t tile_y = tile / t.tiles_x, tile_x = tile % t.tiles_x;
        InputPatch(t, input_gradient, tile, phase_panel / t.in_panels, panel, results);
        for (int64_t y = 0; y < t.points; ++y) {
          for (int64_t x = 0; x < t.points; ++x) {
            const bool seen = (y < t.taps - 1 && tile_y > 0) || (x < t.taps - 1 && tile_x > 0);
            const bool more = (y >= t.m && tile_y + 1 < t.tiles_y) || (x >= t.m && tile_x + 1 < t.tiles_x);
            modes[y * t.points + x] = (seen ? kAddToResult : 0) | (more ? 0 : epilogue_mode);
          }
        }
        for (int64_t p = 0; p < t.all_points; ++p) {
          sources[p] = t.Needs(tile, p) ? products + p * product_stride + (i * t.phase_panels + phase_panel) * t.panel_floats : zeros;
        }
        t.Of(transforms.input_adjoint, tile)(t.panel_floats, sources, results, &finish);
      }
    });
  }
}

namespace {

// A weight-gradient task: some input panels of one phase against all output panels. The tiles are taken in blocks whose
// transformed input stays near the second-level cache. With one block, the output panels are blocked as well, so that
// the sums stay there too; with several, the sums of all output panels are carried from block to block.
struct GradientBlocking {
  int64_t group_panels;  // input panels of a task
  int64_t block_tiles;
  int64_t block_panels;  // output panels
  int64_t chunk_tiles;   // tiles of one product: about 256 rows

  GradientBlocking(const Tiling& t, int thread_count) {
    group_panels = std::min<int64_t>(4, t.in_panels);
    while (group_panels > 1 && group_count(t) * t.phases < 4 * thread_count &&
           group_count(t) * t.phases % thread_count != 0) {
      --group_panels;
    }
    chunk_tiles = std::clamp<int64_t>(256 / t.g.batch, 1, kChunkPanels);
    const int64_t most = std::max<int64_t>(kGroupFloats / (t.all_points * t.panel_floats * group_panels), chunk_tiles);
    const int64_t blocks = (t.tiles + most - 1) / most;
    block_tiles = (t.tiles + blocks - 1) / blocks;
    block_panels = blocks == 1 ? std::min<int64_t>(t.out_panels, 4) : t.out_panels;
  }
  int64_t group_count(const Tiling& t) const { return (t.in_panels + group_panels - 1) / group_panels; }
  int64_t input_stride(const Tiling& t) const { return t.point_stride(block_tiles, group_panels); }
  int64_t sum_stride() const { return block_panels * group_panels * 256 + kPointGap; }
  int64_t share_floats(const Tiling& t) const { return t.all_points * (input_stride(t) + sum_stride()); }
};

// Operands of the products of one task and block.
struct GradientProducts {
  const Tiling& t;
  const GradientBlocking& blocking;
  const PanelKernels& kernels;
  const float* inputs;     // [point][tile of the block][input panel of the group][batch][16]
  const float* gradients;  // [point][tile][out panel][batch][16], from the block's first tile on
  int64_t gradient_stride;
  float* sums;  // [point][out panel of the block][input panel of the group][16 in][16 out]
};

// Collects tiles [tile, end) of the block that need `point`, at most `most` of them; `tile` moves behind the last one.
int64_t TakeTiles(const Tiling& t, int64_t first_tile, int64_t point, int64_t most, int64_t end, int64_t& tile, int64_t* taken) {
  int64_t count = 0;
  for (; tile < end && count < most; ++tile) {
    if (t.Needs(first_tile + tile, point)) taken[count++] = tile;
  }
  return count;
}

void AddProducts(const GradientProducts& p, int64_t first_tile, int64_t tiles, int64_t in_count, int64_t first_out, int64_t out_count) {
  const Tiling& t = p.t;
  const int64_t group = p.blocking.group_panels;
  for (int64_t point = 0; point < t.all_points; ++point) {
    const float* inputs = p.inputs + point * p.blocking.input_stride(t);
    const float* gradients = p.gradients + point * p.gradient_stride + first_out * t.panel_floats;
    float* sums = p.sums + point * p.blocking.sum_stride();
    bool accumulate = first_tile > 0;
    int64_t now[kChunkPanels], later[kChunkPanels];
    int64_t tile = 0;
    int64_t count = TakeTiles(t, first_tile, point, p.blocking.chunk_tiles, tiles, tile, now);
    if (count == 0 && !accumulate) std::memset(sums, 0, static_cast<size_t>(p.blocking.sum_stride()) * sizeof(float));
    while (count > 0) {
      const int64_t later_count = TakeTiles(t, first_tile, point, p.blocking.chunk_tiles, tiles, tile, later);
      for (int64_t o = 0; o < out_count;) {
        const bool pair = p.kernels.gemm_transposed_pair != nullptr && o + 1 < out_count;
        const int64_t width = pair ? 2 : 1;
        const float* b[kChunkPanels];
        const float* next[kChunkPanels];
        for (int64_t i = 0; i < count; ++i) {
          b[i] = gradients + (now[i] * t.out_panels + o) * t.panel_floats;
          // Behind the last panel of this block come those of the next chunk or point.
          if (o + width < out_count) next[i] = b[i] + width * t.panel_floats;
          else if (i < later_count) next[i] = gradients + later[i] * t.out_panels * t.panel_floats;
          else next[i] = gradients + p.gradient_stride + i * t.out_panels * t.panel_floats;
        }
        for (int64_t c = 0; c < in_count; ++c) {
          const float* a[kChunkPanels];
          for (int64_t i = 0; i < count; ++i) a[i] = inputs + (now[i] * group + c) * t.panel_floats;
          float* sum = sums + (o * group + c) * 256;
          const float* const* fetched = c == 0 ? next : nullptr;
          if (pair) {
            p.kernels.gemm_transposed_pair(16, count, a, b, t.panel_floats, t.g.batch, sum, group * 256, accumulate, fetched);
          } else {
            p.kernels.gemm_transposed(16, count, a, b, t.g.batch, sum, accumulate, fetched);
          }
        }
        o += width;
      }
      accumulate = true;
      std::copy_n(later, later_count, now);
      count = later_count;
    }
  }
}

}  // namespace

int64_t WeightGradientScratchFloats(const ConvGeometry& g, const WinogradKernels& transforms, int thread_count) {
  const Tiling t{g, transforms};
  const GradientBlocking blocking(t, std::max(thread_count, 1));
  return t.panel_floats + t.all_points * t.point_stride(t.tiles, t.out_panels) +
         std::max(thread_count, 1) * blocking.share_floats(t) + direct::WeightGradientScratchFloats(g);
}

void WeightGradient(const ConvGeometry& g, const GradientOperands& operands, const PanelKernels& kernels, const WinogradKernels& transforms,
                    const float* input, const float* output_gradient, bool accumulate, float* weight_gradient,
                    float* scratch, int thread_count) {
  Tiling t{g, transforms};
  t.input_floats = operands.input_images * 16;
  t.output_floats = operands.output_images * 16;
  t.pixel_panels = operands.output_panels;
  const int64_t shares = std::max(thread_count, 1);
  const GradientBlocking blocking(t, static_cast<int>(shares));
  const int64_t gradient_stride = t.point_stride(t.tiles, t.out_panels);
  const int64_t group = blocking.group_panels;
  float* zeros = scratch;
  float* gradients = zeros + t.panel_floats;                   // [point][tile][out panel][batch][16]
  float* blocks = gradients + t.all_points * gradient_stride;  // [tap][out panel][in panel][16 in][16 out]
  float* own = blocks + direct::WeightGradientScratchFloats(g);
  std::memset(zeros, 0, t.panel_floats * sizeof(float));

  ParallelFor(thread_count, t.tiles * t.out_panels, [&](int64_t task) {
    TransformOutputGradient(t, transforms, output_gradient, zeros, task / t.out_panels, task % t.out_panels,
                            gradients + task * t.panel_floats, gradient_stride);
  });

  const int64_t tasks = t.phases * blocking.group_count(t);
  ParallelFor(thread_count, shares, [&](int64_t share) {
    float* inputs = own + share * blocking.share_floats(t);
    float* sums = inputs + t.all_points * blocking.input_stride(t);
    for (int64_t task = tasks * share / shares; task < tasks * (share + 1) / shares; ++task) {
      const int64_t phase = task / blocking.group_count(t);
      const int64_t first_in = task % blocking.group_count(t) * group;
      const int64_t in_count = std::min(group, t.in_panels - first_in);
      const auto transform_block = [&](int64_t first_tile, int64_t tiles) {
        for (int64_t i = 0; i < tiles * in_count; ++i) {
          TransformInput(t, transforms, input, zeros, first_tile + i / in_count, phase, first_in + i % in_count,
                         inputs + (i / in_count * group + i % in_count) * t.panel_floats, blocking.input_stride(t));
        }
      };
      // Sums of [first_out, first_out + out_count) back to the taps of this phase.
      const auto transform_sums = [&](int64_t first_out, int64_t out_count) {
        for (int64_t o = 0; o < out_count; ++o) {
          for (int64_t c = 0; c < in_count; ++c) {
            const float* sources[kMostPoints];
            float* results[kMostPoints];
            for (int64_t p = 0; p < t.all_points; ++p)
              sources[p] = sums + p * blocking.sum_stride() + (o * group + c) * 256;
            for (int64_t i = 0; i < t.taps * t.taps; ++i) {
              const int64_t tap = (phase / t.stride + t.stride * (i / t.taps)) * g.kernel_w + phase % t.stride +
                                  t.stride * (i % t.taps);
              results[i] = blocks + ((tap * t.out_panels + first_out + o) * t.in_panels + first_in + c) * 256;
            }
            transforms.weight_adjoint(256, sources, results, nullptr);
          }
        }
      };
      for (int64_t first_out = 0; first_out < t.out_panels; first_out += blocking.block_panels) {
        const int64_t out_count = std::min(blocking.block_panels, t.out_panels - first_out);
        for (int64_t first_tile = 0; first_tile < t.tiles; first_tile += blocking.block_tiles) {
          const int64_t tiles = std::min(blocking.block_tiles, t.tiles - first_tile);
          // With one block of tiles its transform serves all output panels, with several there is one block of output
          // panels.
          if (first_out == 0) transform_block(first_tile, tiles);
          const GradientProducts products{
              t,   blocking, kernels, inputs, gradients + first_tile * t.out_panels * t.panel_floats, gradient_stride,
              sums};
          AddProducts(products, first_tile, tiles, in_count, first_out, out_count);
        }
        transform_sums(first_out, out_count);
      }
    }
  });
  direct::StoreWeightGradient(g, kernels, blocks, accumulate, weight_gradient, thread_count);
}

}  // namespace gantry::cpu::winograd
