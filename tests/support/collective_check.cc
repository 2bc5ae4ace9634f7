#include "tests/support/collective_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

namespace gantry {
namespace {

constexpr int64_t kGuardBytes = 64;
constexpr std::byte kGuard{0xa5};

uint64_t Scramble(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
  return x ^ x >> 33;
}
uint64_t Draw(uint64_t seed, int rank, int64_t index) {
  return Scramble(seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(rank) * 0x100000001u +
                  static_cast<uint64_t>(index));
}

// As std::ldexp, in one multiplication: for results that are no subnormal doubles.
double Scale(double value, int power) { return value * std::bit_cast<double>(static_cast<uint64_t>(1023 + power) << 52); }

// f16 and bf16 by arithmetic on doubles, independent of the bits of comm/reduce_loops.inc.
double FromSmall(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * Scale(mantissa, 1 - bias - mantissa_bits);
  return sign * Scale((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}
uint16_t ToSmall(double value, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(value);
  if (magnitude == 0) return sign;
  int exponent = std::max(static_cast<int>(std::bit_cast<uint64_t>(magnitude) >> 52) - 1023, 1 - bias);
  double units = std::nearbyint(Scale(magnitude, mantissa_bits - exponent));
  if (units >= Scale(2.0, mantissa_bits)) units /= 2, ++exponent;
  if (exponent > bias) return static_cast<uint16_t>(sign | ((1 << exponent_bits) - 1) << mantissa_bits);
  const int whole = static_cast<int>(units);
  const int biased = whole < (1 << mantissa_bits) ? 0 : exponent + bias;
  return static_cast<uint16_t>(sign | biased << mantissa_bits | (whole & ((1 << mantissa_bits) - 1)));
}

struct Small {
  int exponent_bits, mantissa_bits;
};
Small SmallFormat(ElementType type) { return type == ElementType::kF16 ? Small{5, 10} : Small{8, 7}; }

template <typename T>
T Apply(ReduceOp op, T a, T b) {
  if (op == ReduceOp::kMin) return std::min(a, b);
  if (op == ReduceOp::kMax) return std::max(a, b);
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  } else {
    return a + b;
  }
}

// A number between about -1000 and 1000 of very different sizes, so that sums depend on their order.
double Number(uint64_t draw) {
  const double whole = static_cast<double>(static_cast<int64_t>(draw >> 40)) - (1 << 23);
  return Scale(whole, -13 - static_cast<int>(draw & 15));
}

template <typename T>
void Store(std::byte* to, int64_t index, T value) {
  std::memcpy(to + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

void StoreNumber(ElementType type, std::byte* to, int64_t index, uint64_t draw) {
  switch (type) {
    case ElementType::kF32:
      return Store(to, index, static_cast<float>(Number(draw)));
    case ElementType::kF64:
      return Store(to, index, Number(draw) * 1.000000001);
    case ElementType::kBf16:
    case ElementType::kF16: {
      const Small format = SmallFormat(type);
      return Store(to, index, ToSmall(Number(draw), format.exponent_bits, format.mantissa_bits));
    }
    case ElementType::kI8:
    case ElementType::kU8:
      return Store(to, index, static_cast<uint8_t>(draw >> 20));
    case ElementType::kI32:
      return Store(to, index, static_cast<uint32_t>(draw >> 20));
    case ElementType::kI64:
      return Store(to, index, draw);
  }
}

// The result of element `index` over `ranks`.
template <typename T, typename Make>
T Reduced(ReduceOp op, std::span<const int> ranks, Make&& make) {
  T sum = make(ranks[0]);
  for (size_t i = 1; i < ranks.size(); ++i) sum = Apply<T>(op, sum, make(ranks[i]));
  return sum;
}

void StoreReduced(ElementType type, ReduceOp op, std::span<const int> ranks, uint64_t seed, int64_t index,
                  std::byte* to, int64_t at) {
  const auto make = [&]<typename T>(int rank) {
    std::byte element[8];
    StoreNumber(type, element, 0, Draw(seed, rank, index));
    T value;
    std::memcpy(&value, element, sizeof(value));
    return value;
  };
  const auto plain = [&]<typename T>() {
    Store(to, at, Reduced<T>(op, ranks, [&](int rank) { return make.template operator()<T>(rank); }));
  };
  switch (type) {
    case ElementType::kF32:
      return plain.template operator()<float>();
    case ElementType::kF64:
      return plain.template operator()<double>();
    case ElementType::kI8:
      return plain.template operator()<int8_t>();
    case ElementType::kU8:
      return plain.template operator()<uint8_t>();
    case ElementType::kI32:
      return plain.template operator()<int32_t>();
    case ElementType::kI64:
      return plain.template operator()<int64_t>();
    case ElementType::kBf16:
    case ElementType::kF16: {
      const Small format = SmallFormat(type);
      const float sum = Reduced<float>(op, ranks, [&](int rank) {
        return static_cast<float>(
            FromSmall(make.template operator()<uint16_t>(rank), format.exponent_bits, format.mantissa_bits));
      });
      return Store(to, at, ToSmall(sum, format.exponent_bits, format.mantissa_bits));
    }
  }
}

void FillNumbers(ElementType type, std::byte* to, int64_t count, uint64_t seed, int rank) {
  for (int64_t i = 0; i < count; ++i) StoreNumber(type, to, i, Draw(seed, rank, i));
}
// Eight bytes a draw.
void FillBytes(std::byte* to, int64_t bytes, uint64_t seed, int rank, int64_t first) {
  int64_t i = 0;
  for (; i < bytes && (first + i) % 8 != 0; ++i) to[i] = static_cast<std::byte>(Draw(seed, rank, (first + i) / 8) >> (first + i) % 8 * 8);
  for (; i < bytes; i += 8) {
    const uint64_t draw = Draw(seed, rank, (first + i) / 8);
    std::memcpy(to + i, &draw, static_cast<size_t>(std::min<int64_t>(8, bytes - i)));
  }
}

absl::Status Compare(std::string_view what, const Communicator& group, const std::byte* got, const std::byte* wanted,
                     int64_t bytes) {
  if (std::equal(got, got + bytes, wanted)) return absl::OkStatus();
  const int64_t i = std::mismatch(got, got + bytes, wanted).first - got;
  return absl::DataLossError(absl::StrFormat("%s: rank %d of %d: byte %d of %d is %02x, should be %02x", what,
                                             group.rank(), group.size(), i, bytes, static_cast<int>(got[i]),
                                             static_cast<int>(wanted[i])));
}

absl::Status CheckGuard(std::string_view what, const Communicator& group, const std::byte* end) {
  for (int64_t i = 0; i < kGuardBytes; ++i) {
    if (end[i] != kGuard) {
      return absl::DataLossError(absl::StrFormat("%s: rank %d of %d: byte %d behind the end was written", what,
                                                 group.rank(), group.size(), i));
    }
  }
  return absl::OkStatus();
}

int64_t Total(std::span<const int64_t> parts) { return std::accumulate(parts.begin(), parts.end(), int64_t{0}); }

}  // namespace

// With guard bytes behind it.
std::byte* CollectiveCheck::Place(const Communicator& group, Where where, uint64_t seed, int which, int64_t bytes) {
  const bool is_private =
      where == Where::kPrivate || (where == Where::kMixed && (Draw(seed, group.rank(), which) >> 30 & 1) != 0);
  std::byte* place = nullptr;
  if (is_private) {
    private_[which].resize(static_cast<size_t>(bytes + kGuardBytes));
    place = private_[which].data();
  } else {
    const int64_t half = static_cast<int64_t>(memory_.size()) / 2 / 64 * 64;
    if (bytes + kGuardBytes > half) return nullptr;
    place = memory_.data() + which * half;
  }
  std::fill_n(place + bytes, kGuardBytes, kGuard);
  return place;
}

absl::Status CollectiveCheck::AllReduce(Communicator& group, ElementType type, ReduceOp op, int64_t count,
                                        uint64_t seed, const CheckOptions& options) {
  const int64_t bytes = count * SizeBytes(type);
  std::byte* data = Place(group, options.where, seed, 0, bytes);
  FillNumbers(type, data, count, seed, rank_);
  GANTRY_RETURN_IF_ERROR(group.AllReduce(data, count, type, op, options.collective).Wait());
  std::vector<std::byte> wanted(static_cast<size_t>(bytes));
  for (int64_t i = 0; i < count; ++i) StoreReduced(type, op, group.ranks(), seed, i, wanted.data(), i);
  const std::string what = absl::StrFormat("all_reduce %s of %d %s", Name(op), count, Name(type));
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, data + bytes));
  return Compare(what, group, data, wanted.data(), bytes);
}

absl::Status CollectiveCheck::Reduce(Communicator& group, ElementType type, ReduceOp op, int64_t count, int root,
                                     uint64_t seed, const CheckOptions& options) {
  const int64_t bytes = count * SizeBytes(type);
  std::byte* data = Place(group, options.where, seed, 0, bytes);
  FillNumbers(type, data, count, seed, rank_);
  std::vector<std::byte> wanted(data, data + bytes);
  GANTRY_RETURN_IF_ERROR(group.Reduce(data, count, type, op, root, options.collective).Wait());
  if (group.rank() == root) {
    for (int64_t i = 0; i < count; ++i) StoreReduced(type, op, group.ranks(), seed, i, wanted.data(), i);
  }
  const std::string what = absl::StrFormat("reduce %s of %d %s to %d", Name(op), count, Name(type), root);
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, data + bytes));
  return Compare(what, group, data, wanted.data(), bytes);
}

absl::Status CollectiveCheck::ReduceScatter(Communicator& group, ElementType type, ReduceOp op,
                                            std::span<const int64_t> counts, uint64_t seed,
                                            const CheckOptions& options) {
  const int64_t size = SizeBytes(type), total = Total(counts);
  const int64_t first = Total(counts.first(group.rank())), mine = counts[group.rank()];
  std::byte* from = Place(group, options.where, seed, 0, total * size);
  std::byte* to = options.in_place ? from + first * size : Place(group, options.where, seed, 1, mine * size);
  FillNumbers(type, from, total, seed, rank_);
  GANTRY_RETURN_IF_ERROR(group.ReduceScatter(from, to, counts, type, op, options.collective).Wait());
  std::vector<std::byte> wanted(static_cast<size_t>(mine * size));
  for (int64_t i = 0; i < mine; ++i) StoreReduced(type, op, group.ranks(), seed, first + i, wanted.data(), i);
  const std::string what = absl::StrFormat("reduce_scatter %s of %d %s", Name(op), total, Name(type));
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, from + total * size));
  return Compare(what, group, to, wanted.data(), mine * size);
}

absl::Status CollectiveCheck::AllGather(Communicator& group, std::span<const int64_t> bytes, uint64_t seed,
                                        const CheckOptions& options) {
  const int64_t total = Total(bytes), first = Total(bytes.first(group.rank())), mine = bytes[group.rank()];
  std::byte* to = Place(group, options.where, seed, 0, total);
  std::byte* from = options.in_place ? to + first : Place(group, options.where, seed, 1, mine);
  std::fill_n(to, total, std::byte{0});
  FillBytes(from, mine, seed, rank_, 0);
  GANTRY_RETURN_IF_ERROR(group.AllGather(from, to, bytes, options.collective).Wait());
  std::vector<std::byte> wanted(static_cast<size_t>(total));
  int64_t place = 0;
  for (int rank = 0; rank < group.size(); place += bytes[rank++])
    FillBytes(wanted.data() + place, bytes[rank], seed, group.ranks()[rank], 0);
  const std::string what = absl::StrFormat("all_gather of %d bytes", total);
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, to + total));
  return Compare(what, group, to, wanted.data(), total);
}

absl::Status CollectiveCheck::Broadcast(Communicator& group, int64_t bytes, int root, uint64_t seed,
                                        const CheckOptions& options) {
  std::byte* data = Place(group, options.where, seed, 0, bytes);
  FillBytes(data, bytes, seed, rank_, 0);
  GANTRY_RETURN_IF_ERROR(group.Broadcast(data, bytes, root, options.collective).Wait());
  std::vector<std::byte> wanted(static_cast<size_t>(bytes));
  FillBytes(wanted.data(), bytes, seed, group.ranks()[root], 0);
  const std::string what = absl::StrFormat("broadcast of %d bytes from %d", bytes, root);
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, data + bytes));
  return Compare(what, group, data, wanted.data(), bytes);
}

absl::Status CollectiveCheck::AllToAll(Communicator& group, std::span<const int64_t> parts, uint64_t seed,
                                       const CheckOptions& options) {
  const int n = group.size(), self = group.rank();
  std::vector<int64_t> from_bytes(n), to_bytes(n);
  for (int rank = 0; rank < n; ++rank) {
    from_bytes[rank] = parts[self * n + rank];
    to_bytes[rank] = parts[rank * n + self];
  }
  std::byte* from = Place(group, options.where, seed, 0, Total(from_bytes));
  std::byte* to = Place(group, options.where, seed, 1, Total(to_bytes));
  FillBytes(from, Total(from_bytes), seed, rank_, 0);
  std::fill_n(to, Total(to_bytes), std::byte{0});
  GANTRY_RETURN_IF_ERROR(group.AllToAll(from, from_bytes, to, to_bytes, options.collective).Wait());
  std::vector<std::byte> wanted(static_cast<size_t>(Total(to_bytes)));
  int64_t place = 0;
  for (int rank = 0; rank < n; place += to_bytes[rank++]) {
    FillBytes(wanted.data() + place, to_bytes[rank], seed, group.ranks()[rank], Total(parts.subspan(rank * n, self)));
  }
  const std::string what = absl::StrFormat("all_to_all of %d bytes", Total(to_bytes));
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, to + Total(to_bytes)));
  return Compare(what, group, to, wanted.data(), Total(to_bytes));
}

absl::Status CollectiveCheck::ExchangeHalo(Communicator& group, std::span<const int> shape, bool periodic,
                                           std::span<const int64_t> bytes, uint64_t seed, const CheckOptions& options) {
  // Rank = (x0 * shape[1] + x1) * shape[2] + x2; ranks beyond the mesh have no neighbours.
  const int dimensions = static_cast<int>(shape.size());
  const int in_mesh = std::accumulate(shape.begin(), shape.end(), 1, std::multiplies<>());
  const auto neighbour = [&](int rank, int dimension, int step) {
    if (rank >= in_mesh) return -1;
    int stride = 1;
    for (int d = dimensions - 1; d > dimension; --d) stride *= shape[d];
    const int at = rank / stride % shape[dimension];
    int next = at + step;
    if (next < 0 || next >= shape[dimension]) {
      if (!periodic) return -1;
      next = (next + shape[dimension]) % shape[dimension];
    }
    return rank + (next - at) * stride;
  };
  const int self = group.rank();
  const int64_t total = 2 * Total(bytes);
  std::byte* from = Place(group, options.where, seed, 0, total);
  std::byte* to = Place(group, options.where, seed, 1, total);
  FillBytes(from, total, seed, rank_, 0);
  std::fill_n(to, total, std::byte{0x11});
  std::vector<HaloExchange> halos(dimensions);
  std::vector<std::byte> wanted(static_cast<size_t>(total), std::byte{0x11});
  for (int64_t d = 0, place = 0; d < dimensions; place += 2 * bytes[d++]) {
    const size_t length = static_cast<size_t>(bytes[d]);
    HaloExchange& halo = halos[d];
    halo.before = neighbour(self, static_cast<int>(d), -1);
    halo.behind = neighbour(self, static_cast<int>(d), +1);
    halo.to_before = {from + place, length};
    halo.to_behind = {from + place + bytes[d], length};
    halo.from_before = {to + place, length};
    halo.from_behind = {to + place + bytes[d], length};
    if (halo.before >= 0)
      FillBytes(wanted.data() + place, bytes[d], seed, group.ranks()[halo.before], place + bytes[d]);
    if (halo.behind >= 0)
      FillBytes(wanted.data() + place + bytes[d], bytes[d], seed, group.ranks()[halo.behind], place);
  }
  GANTRY_RETURN_IF_ERROR(group.ExchangeHalo(halos, options.collective).Wait());
  const std::string what = absl::StrFormat("exchange_halo of %d bytes in %d dimensions", total, dimensions);
  GANTRY_RETURN_IF_ERROR(CheckGuard(what, group, to + total));
  return Compare(what, group, to, wanted.data(), total);
}

absl::Status CollectiveCheck::SendReceive(Communicator& group, int64_t bytes, int from, int to, uint64_t seed,
                                          const CheckOptions& options) {
  std::byte* data = Place(group, options.where, seed, 0, bytes);
  FillBytes(data, bytes, seed, rank_, 0);
  GANTRY_RETURN_IF_ERROR(group.SendReceive(data, bytes, from, to, options.collective).Wait());
  std::vector<std::byte> wanted(static_cast<size_t>(bytes));
  FillBytes(wanted.data(), bytes, seed, group.rank() == to ? group.ranks()[from] : rank_, 0);
  return Compare(absl::StrFormat("send_receive of %d bytes from %d to %d", bytes, from, to), group, data, wanted.data(),
                 bytes);
}

absl::Status CollectiveCheck::Random(Communicator& group, std::mt19937_64& shared, int64_t largest_bytes) {
  const auto draw = [&](int64_t below) { return static_cast<int64_t>(shared() % static_cast<uint64_t>(below)); };
  const int n = group.size();
  // Sizes of every order of magnitude.
  const auto size = [&](int64_t most) {
    return most <= 1 ? most : draw(std::max<int64_t>(1, most >> draw(std::bit_width(static_cast<uint64_t>(most)))));
  };
  const int kind = static_cast<int>(draw(9));
  const auto type = static_cast<ElementType>(draw(kElementTypes));
  const auto op = static_cast<ReduceOp>(draw(kReduceOps));
  const CheckOptions options{
      .where = static_cast<Where>(draw(3)),
      .in_place = draw(2) == 0,
      .collective = {.name = "random", .priority = static_cast<int>(draw(3)), .in_background = draw(3) == 0}};
  const uint64_t seed = shared();
  switch (kind) {
    case 0:
      return AllReduce(group, type, op, size(largest_bytes / SizeBytes(type)), seed, options);
    case 1:
      return Reduce(group, type, op, size(largest_bytes / SizeBytes(type)), static_cast<int>(draw(n)), seed, options);
    case 2: {
      std::vector<int64_t> counts(n);
      for (int64_t& count : counts) count = size(largest_bytes / n / SizeBytes(type));
      return ReduceScatter(group, type, op, counts, seed, options);
    }
    case 3: {
      std::vector<int64_t> bytes(n);
      for (int64_t& part : bytes) part = size(largest_bytes / n);
      return AllGather(group, bytes, seed, options);
    }
    case 4:
      return Broadcast(group, size(largest_bytes), static_cast<int>(draw(n)), seed, options);
    case 5: {
      std::vector<int64_t> parts(static_cast<size_t>(n) * n);
      for (int64_t& part : parts) part = size(largest_bytes / n);
      return AllToAll(group, parts, seed, options);
    }
    case 6: {
      const int shapes[][3] = {{n, 1, 1}, {1, n, 1}, {2, n / 2, 1}, {1, 2, n / 2}, {n / 2, 1, 2}};
      std::array<int, 3> shape = std::to_array(shapes[n >= 2 ? draw(5) : draw(2)]);
      const int dimensions = shape[2] > 1 ? 3 : 1 + static_cast<int>(draw(3));
      if (dimensions == 1) shape = {n, 1, 1};
      std::vector<int64_t> bytes(dimensions);
      for (int64_t& face : bytes) face = size(largest_bytes / 2 / dimensions);
      return ExchangeHalo(group, std::span(shape).first(dimensions), draw(2) == 0, bytes, seed, options);
    }
    case 7: {
      if (n < 2) return group.Barrier();
      const int from = static_cast<int>(draw(n));
      return SendReceive(group, size(largest_bytes), from, static_cast<int>((from + 1 + draw(n - 1)) % n), seed,
                         options);
    }
    default:
      return group.Barrier();
  }
}

}  // namespace gantry
