// By which path payload goes to the ranks of other nodes, chosen once, peer by peer.
//   ucx  where UCX finds RDMA hardware that reaches the peer, and both ends have the same version of it
//   tcp  else: the connection itself
// GANTRY_TRANSPORT=tcp or ucx asks for one of them for all peers; ucx then also without RDMA. What was wanted and is not
// had is a fallback (memory/fallback.h).
#pragma once

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "comm/links.h"
#include "comm/tcp/carrier.h"
#include "comm/tcp/mailbox.h"
#include "memory/status.h"

namespace gantry {

enum class TransportWish : uint8_t { kFastest, kTcp, kUcx };
// Of GANTRY_TRANSPORT. kInvalidArgument where that is set and neither tcp nor ucx.
absl::StatusOr<TransportWish> TransportWishFromEnvironment();

// All ranks of a job of several nodes call it; addresses and secrets go over the links. A carrier that is to Begin, or
// null where the connections carry all. kFailedPrecondition: a fallback under GANTRY_STRICT.
absl::StatusOr<std::unique_ptr<tcp::Carrier>> ChooseCarrier(TransportWish wish, Links& links, tcp::Mailbox& mailbox,
                                                            absl::Duration timeout);

// "UCX 1.13.1", or "no UCX" where it was not built for it or it is not installed.
std::string DescribeUcx();

}  // namespace gantry
