#include "comm/fabric.h"

#include <numeric>
#include <optional>

#include "comm/nodes/nodes_communicator.h"
#include "comm/paths.h"
#include "comm/shm/shm_communicator.h"
#include "comm/shm/shm_node.h"
#include "comm/shm/shm_transport.h"
#include "comm/tcp/mailbox.h"
#include "comm/tcp/tcp_transport.h"

namespace gantry {
namespace {

class JobFabric final : public Fabric {
 public:
  JobFabric(std::unique_ptr<Pool> pool, std::unique_ptr<shm::ShmNode> node)
      : pool_(std::move(pool)), node_(std::move(node)), of_node_(*node_) {}

  absl::Status Open(const FabricOptions& options) {
    Links& links = node_->links();
    std::vector<int> ranks(static_cast<size_t>(links.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    GANTRY_ASSIGN_OR_RETURN(const TransportWish wish, TransportWishFromEnvironment());
    if (node_->ranks().size() == ranks.size()) {
      GANTRY_ASSIGN_OR_RETURN(world_, shm::ShmCommunicator::Create(*node_, ranks, "world", kWorld, options.timeout));
      return absl::OkStatus();
    }
    GANTRY_ASSIGN_OR_RETURN(mailbox_,
                            tcp::Mailbox::Open(links, node_->liveness(), *pool_, node_->own_bell(),
                                                     [node = node_.get()] { node->GoOn(); }, options.timeout));
    GANTRY_ASSIGN_OR_RETURN(carrier_, ChooseCarrier(wish, links, *mailbox_, options.timeout));
    if (carrier_ != nullptr) GANTRY_RETURN_IF_ERROR(carrier_->Begin(options.timeout));
    between_nodes_.emplace(*node_, *mailbox_, of_node_);
    GANTRY_ASSIGN_OR_RETURN(
        world_, nodes::NodesCommunicator::Create(*node_, *mailbox_, ranks, "world", kWorld, options.timeout));
    return absl::OkStatus();
  }

  const Pool& pool() const override { return *pool_; }
  Transport& transport(int peer) override {
    if (of_node_.Reaches(peer) || !between_nodes_.has_value()) return of_node_;
    return *between_nodes_;
  }
  Communicator& world() override { return *world_; }
  std::vector<std::string> Describe() const override {
    std::vector<std::string> lines;
    lines.push_back(absl::StrFormat("%d ranks on %d cores: a wait %s; memory outside the pool: %s",
                                    node_->ranks().size(), node_->core_count(), node_->policy().Describe(),
                                    node_->cross_memory() ? "cross-memory reads from 1 MiB, staged below" : "staged"));
    for (int rank = 0; rank < node_->links().size(); ++rank) {
      if (rank == node_->links().rank()) continue;
      const bool is_here = of_node_.Reaches(rank);
      lines.push_back(
          absl::StrFormat("rank %d: %s", rank, is_here ? of_node_.DescribePath(rank) : mailbox_->DescribePath(rank)));
    }
    return lines;
  }

 private:
  static constexpr uint64_t kWorld = 1;  // the group's number

  const std::unique_ptr<Pool> pool_;
  const std::unique_ptr<shm::ShmNode> node_;
  shm::ShmTransport of_node_;
  std::unique_ptr<tcp::Carrier> carrier_;  // null where the connections carry all
  std::unique_ptr<tcp::Mailbox> mailbox_;  // null where all ranks are on one node
  std::optional<tcp::TcpTransport> between_nodes_;
  std::unique_ptr<Communicator> world_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Fabric>> Fabric::Open(Links& links, Liveness& liveness, std::span<const PoolRegion> mine,
                                                     const FabricOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Pool> pool, Pool::Share(links, mine, options.timeout));
  GANTRY_ASSIGN_OR_RETURN(
      std::unique_ptr<shm::ShmNode> node,
      shm::ShmNode::Open(links, liveness, *pool, {.cross_memory = options.cross_memory, .recorder = options.recorder},
                         options.timeout));
  auto fabric = std::make_unique<JobFabric>(std::move(pool), std::move(node));
  GANTRY_RETURN_IF_ERROR(fabric->Open(options));
  return fabric;
}

}  // namespace gantry
