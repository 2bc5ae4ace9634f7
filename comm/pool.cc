#include "comm/pool.h"

#include <cstring>
#include <utility>

#include "comm/channels.h"

namespace gantry {
namespace {

// What a rank says of each of its regions.
struct Announcement {
  int64_t bytes;
  uint32_t access;
  uint32_t has_descriptor;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Pool>> Pool::Share(Links& links, std::span<const PoolRegion> mine,
                                                  absl::Duration timeout) {
  auto pool = std::unique_ptr<Pool>(new Pool());
  pool->rank_ = links.rank();
  pool->ranks_.resize(links.size());

  std::vector<Announcement> announcements;
  std::vector<int> descriptors;
  for (const PoolRegion& region : mine) {
    if (region.bytes < 0 || (region.bytes > 0 && (region.data == nullptr || region.descriptor < 0))) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "region \"%s\" of %d bytes cannot be shared: it is not memory with a descriptor", region.name, region.bytes));
    }
    if (region.bytes > 0 && region.others == Access::kRead) {
      GANTRY_RETURN_IF_ERROR(Annotate(SharedRegion::LendReadOnly(region.descriptor), region.name));
    }
    announcements.push_back({region.bytes, static_cast<uint32_t>(region.others), region.bytes > 0 ? 1u : 0u});
    if (region.bytes > 0) descriptors.push_back(region.descriptor);
    pool->ranks_[links.rank()].push_back({.data = region.data, .bytes = region.bytes, .access = region.others});
  }

  // Descriptors go to the ranks of this node only.
  const std::span<const std::byte> bytes = std::as_bytes(std::span(announcements));
  for (int peer = 0; peer < links.size(); ++peer) {
    if (peer == links.rank()) continue;
    GANTRY_RETURN_IF_ERROR(
        links.Send(peer, kPoolChannel, bytes, links.SameNode(peer) ? descriptors : std::vector<int>()));
  }
  const absl::Time deadline = absl::Now() + timeout;
  for (int peer = 0; peer < links.size(); ++peer) {
    if (peer == links.rank()) continue;
    GANTRY_ASSIGN_OR_RETURN(LinkMessage message, links.Receive(peer, kPoolChannel, deadline - absl::Now()));
    const size_t count = message.bytes.size() / sizeof(Announcement);
    std::vector<Announcement> theirs(count);
    if (count > 0) std::memcpy(theirs.data(), message.bytes.data(), count * sizeof(Announcement));
    size_t next = 0;
    absl::Status status;
    for (size_t region = 0; region < count; ++region) {
      Mapped mapped{.bytes = theirs[region].bytes, .access = static_cast<Access>(theirs[region].access)};
      if (links.SameNode(peer) && theirs[region].has_descriptor != 0 && status.ok()) {
        const std::string owner = absl::StrFormat("region %d of rank %d", region, peer);
        absl::StatusOr<SharedRegion> mapping =
            next < message.descriptors.size()
                ? SharedRegion::Map(owner, std::move(message.descriptors[next]), mapped.bytes, mapped.access)
                : absl::StatusOr<SharedRegion>(
                      absl::DataLossError(absl::StrCat(owner, " came without its descriptor")));
        ++next;
        if (mapping.ok()) {
          mapped.mapping = *std::move(mapping);
          mapped.data = mapped.mapping.data();
        } else {
          status = mapping.status();
        }
      }
      pool->ranks_[peer].push_back(std::move(mapped));
    }
    GANTRY_RETURN_IF_ERROR(status);
  }
  return pool;
}

absl::Status Pool::Check(const GlobalAddress& address, int64_t bytes) const {
  if (address.rank < 0 || address.rank >= static_cast<int>(ranks_.size())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rank %d is not one of the %d of the pool", address.rank, ranks_.size()));
  }
  if (address.region < 0 || address.region >= region_count(address.rank)) {
    return absl::InvalidArgumentError(absl::StrFormat("rank %d shares %d regions, %d is none of them", address.rank,
                                                      region_count(address.rank), address.region));
  }
  const int64_t size = region_bytes(address.rank, address.region);
  if (bytes < 0 || address.offset < 0 || bytes > size || address.offset > size - bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d bytes at %d are not inside region %d of rank %d, which has %d", bytes, address.offset,
                        address.region, address.rank, size));
  }
  return absl::OkStatus();
}

std::optional<GlobalAddress> Pool::Find(const void* data, int64_t bytes) const {
  const auto* first = static_cast<const std::byte*>(data);
  const std::vector<Mapped>& mine = ranks_[rank_];
  for (size_t region = 0; region < mine.size(); ++region) {
    const Mapped& mapped = mine[region];
    if (mapped.data == nullptr || mapped.access != Access::kReadWrite) continue;
    if (first >= mapped.data && bytes <= mapped.bytes && first - mapped.data <= mapped.bytes - bytes) {
      return GlobalAddress{rank_, static_cast<int>(region), first - mapped.data};
    }
  }
  return std::nullopt;
}

}  // namespace gantry
