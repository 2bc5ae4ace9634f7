#include "comm/fabric.h"

#include <numeric>

#include "comm/shm/shm_communicator.h"
#include "comm/shm/shm_node.h"
#include "comm/shm/shm_transport.h"

namespace gantry {
namespace {

class NodeFabric final : public Fabric {
 public:
  NodeFabric(std::unique_ptr<Pool> pool, std::unique_ptr<shm::ShmNode> node, std::unique_ptr<Communicator> world)
      : pool_(std::move(pool)), node_(std::move(node)), transport_(*node_), world_(std::move(world)) {}

  const Pool& pool() const override { return *pool_; }
  Transport& transport(int) override { return transport_; }
  Communicator& world() override { return *world_; }
  std::vector<std::string> Describe() const override {
    std::vector<std::string> lines;
    lines.push_back(absl::StrFormat("%d ranks on %d cores: a wait %s; memory outside the pool: %s",
                                    node_->ranks().size(), node_->core_count(), node_->policy().Describe(),
                                    node_->cross_memory() ? "cross-memory reads from 1 MiB, staged below" : "staged"));
    for (const int rank : node_->ranks()) {
      if (rank != node_->links().rank())
        lines.push_back(absl::StrFormat("rank %d: %s", rank, transport_.DescribePath(rank)));
    }
    return lines;
  }

 private:
  const std::unique_ptr<Pool> pool_;
  const std::unique_ptr<shm::ShmNode> node_;
  shm::ShmTransport transport_;
  const std::unique_ptr<Communicator> world_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Fabric>> Fabric::Open(Links& links, Liveness& liveness, std::span<const PoolRegion> mine,
                                                     const FabricOptions& options) {
  for (int rank = 0; rank < links.size(); ++rank) {
    if (rank != links.rank() && !links.SameNode(rank)) {
      return absl::UnimplementedError(
          absl::StrFormat("rank %d is on host %s: this version of Gantry moves data between ranks of one machine only",
                          rank, links.peer(rank).host));
    }
  }
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Pool> pool, Pool::Share(links, mine, options.timeout));
  GANTRY_ASSIGN_OR_RETURN(
      std::unique_ptr<shm::ShmNode> node,
      shm::ShmNode::Open(links, liveness, *pool, {.cross_memory = options.cross_memory, .recorder = options.recorder},
                         options.timeout));
  std::vector<int> ranks(static_cast<size_t>(links.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> world,
                          shm::ShmCommunicator::Create(*node, ranks, "world", 1, options.timeout));
  return std::make_unique<NodeFabric>(std::move(pool), std::move(node), std::move(world));
}

}  // namespace gantry
