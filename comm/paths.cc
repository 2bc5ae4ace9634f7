#include "comm/paths.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/process.h"
#include "memory/fallback.h"
#ifdef GANTRY_WITH_UCX
#include "comm/ucx/ucx_carrier.h"
#endif

namespace gantry {
namespace {

// The first RDMA device of this machine; empty: there is none.
std::string RdmaDevice() {
  std::error_code ignored;
  for (const auto& device : std::filesystem::directory_iterator("/sys/class/infiniband", ignored))
    return device.path().filename();
  return "";
}

// What ranks of different nodes tell each other of UCX: a line that says which, and what is needed for a way, or why
// there is none to this rank. Then the machine's identity, which two network namespaces share.
struct Offer {
  std::string version;  // empty: no UCX
  std::string why_not;
  std::string machine;
  std::string secret, address;

  std::string ToBytes() const {
    std::string bytes;
    for (const std::string* field : {&version, &why_not, &machine, &secret, &address}) {
      const auto size = static_cast<uint32_t>(field->size());
      bytes.append(reinterpret_cast<const char*>(&size), sizeof(size)).append(*field);
    }
    return bytes;
  }
  static absl::StatusOr<Offer> FromBytes(std::span<const std::byte> bytes) {
    Offer offer;
    for (std::string* field : {&offer.version, &offer.why_not, &offer.machine, &offer.secret, &offer.address}) {
      uint32_t size = 0;
      if (bytes.size() < sizeof(size)) return absl::DataLossError("what it offers is cut off");
      std::memcpy(&size, bytes.data(), sizeof(size));
      bytes = bytes.subspan(sizeof(size));
      if (bytes.size() < size) return absl::DataLossError("what it offers is cut off");
      field->assign(reinterpret_cast<const char*>(bytes.data()), size);
      bytes = bytes.subspan(size);
    }
    return offer;
  }
};

class Choice {
 public:
  Choice(Links& links, tcp::Mailbox& mailbox, TransportWish wish)
      : links_(links), mailbox_(mailbox), wish_(wish) {}

  absl::StatusOr<std::unique_ptr<tcp::Carrier>> Make(absl::Duration timeout) {
    mine_.machine = BootIdentity();
    const std::string device = RdmaDevice();
    wants_ucx_ = wish_ == TransportWish::kUcx || (wish_ == TransportWish::kFastest && !device.empty());
    if (wants_ucx_) {
      Start();
    } else {
      mine_.why_not = wish_ == TransportWish::kTcp ? "GANTRY_TRANSPORT=tcp there" : "it has no RDMA device";
    }
    GANTRY_RETURN_IF_ERROR(Exchange(timeout));
    for (size_t i = 0; i < peers_.size(); ++i) GANTRY_RETURN_IF_ERROR(Decide(peers_[i], theirs_[i]));
    // Also without a way of its own: the others may have one to this rank.
    return std::move(carrier_);
  }

 private:
  void Start() {
#ifdef GANTRY_WITH_UCX
    absl::StatusOr<std::unique_ptr<ucx::UcxCarrier>> carrier = ucx::UcxCarrier::Open(mailbox_, links_.size());
    if (!carrier.ok()) {
      mine_.why_not = Message(carrier.status());
      return;
    }
    carrier_ = *std::move(carrier);
    mine_.version = ucx::UcxCarrier::Version();
    mine_.address.assign(reinterpret_cast<const char*>(carrier_->address().data()), carrier_->address().size());
#else
    mine_.why_not = "it was built without UCX";
#endif
  }

  absl::Status Exchange(absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    for (int peer = 0; peer < links_.size(); ++peer) {
      if (!mailbox_.Reaches(peer)) continue;
      peers_.push_back(peer);
#ifdef GANTRY_WITH_UCX
      if (carrier_ != nullptr) {
        const ucx::Secret& secret = carrier_->SecretOf(peer);
        mine_.secret.assign(reinterpret_cast<const char*>(secret.data()), secret.size());
      }
#endif
      const std::string bytes = mine_.ToBytes();
      GANTRY_RETURN_IF_ERROR(links_.Send(peer, kPathChannel, std::as_bytes(std::span(bytes))));
    }
    for (const int peer : peers_) {
      GANTRY_ASSIGN_OR_RETURN(const LinkMessage message, links_.Receive(peer, kPathChannel, deadline - absl::Now()));
      absl::StatusOr<Offer> offer = Offer::FromBytes(message.bytes);
      if (!offer.ok()) return Annotate(offer.status(), absl::StrFormat("rank %d", peer));
      theirs_.push_back(*std::move(offer));
    }
    return absl::OkStatus();
  }

  // One peer. What is its path otherwise than wanted is noted.
  absl::Status Decide(int peer, const Offer& theirs) {
    const std::string path = absl::StrFormat("the path to rank %d", peer);
    if (theirs.machine == mine_.machine && !mine_.machine.empty() && std::getenv("GANTRY_NODE") == nullptr) {
      GANTRY_RETURN_IF_ERROR(NoteFallback(
          {.what = path,
           .wanted = "shm",
           .got = "a network",
           .why = "it is on this machine, but in another network namespace, so that the two share no memory",
           .remedy = "start the ranks of a machine in one container, or say by GANTRY_NODE that they are on two"}));
    }
    if (!wants_ucx_) return absl::OkStatus();
    Fallback fallback{.what = path, .wanted = "ucx", .got = "tcp", .why = "", .remedy = kRemedy};
    if (mine_.version.empty()) {
      fallback.why = absl::StrCat("this rank does without: ", mine_.why_not);
    } else if (theirs.version.empty()) {
      // Without RDMA at the other end there is nothing that would be faster.
      if (wish_ == TransportWish::kFastest) return absl::OkStatus();
      fallback.why = absl::StrCat("that rank does without: ", theirs.why_not);
    } else if (theirs.version != mine_.version) {
      fallback.why = absl::StrFormat("this rank has UCX %s, that one %s", mine_.version, theirs.version);
      fallback.remedy = "install the same version of UCX on both machines";
    } else {
#ifdef GANTRY_WITH_UCX
      ucx::Secret secret = {};
      if (theirs.secret.size() != secret.size())
        return absl::DataLossError(absl::StrFormat("rank %d gave a secret of %d bytes", peer, theirs.secret.size()));
      std::memcpy(secret.data(), theirs.secret.data(), secret.size());
      const absl::StatusOr<bool> connected = carrier_->Connect(
          peer, std::as_bytes(std::span(theirs.address)), secret, /*only_rdma=*/wish_ == TransportWish::kFastest);
      if (connected.ok()) return absl::OkStatus();
      fallback.why = Message(connected.status());
#endif
    }
    return NoteFallback(fallback);
  }

  static constexpr char kRemedy[] =
      "install UCX (libucx-dev) and build again, let UCX_TLS and UCX_NET_DEVICES name what both machines have, or set "
      "GANTRY_TRANSPORT=tcp on all ranks";

  Links& links_;
  tcp::Mailbox& mailbox_;
  const TransportWish wish_;
  bool wants_ucx_ = false;
  Offer mine_;
  std::vector<int> peers_;
  std::vector<Offer> theirs_;  // by place in peers_
#ifdef GANTRY_WITH_UCX
  std::unique_ptr<ucx::UcxCarrier> carrier_;
#else
  std::unique_ptr<tcp::Carrier> carrier_;
#endif
};

}  // namespace

absl::StatusOr<TransportWish> TransportWishFromEnvironment() {
  const char* text = std::getenv("GANTRY_TRANSPORT");
  const std::string_view value = text == nullptr ? "" : text;
  if (value.empty()) return TransportWish::kFastest;
  if (value == "tcp") return TransportWish::kTcp;
  if (value == "ucx") return TransportWish::kUcx;
  return absl::InvalidArgumentError(absl::StrFormat(
      "GANTRY_TRANSPORT is '%s'; it takes tcp or ucx, and where it is not set each pair of ranks gets the faster one",
      value));
}

absl::StatusOr<std::unique_ptr<tcp::Carrier>> ChooseCarrier(TransportWish wish, Links& links, tcp::Mailbox& mailbox,
                                                            absl::Duration timeout) {
  return Choice(links, mailbox, wish).Make(timeout);
}

std::string DescribeUcx() {
#ifdef GANTRY_WITH_UCX
  if (const std::string version = ucx::UcxCarrier::Version(); !version.empty()) return absl::StrCat("UCX ", version);
#endif
  return "no UCX";
}

}  // namespace gantry
