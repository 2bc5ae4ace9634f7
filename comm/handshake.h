// How two ends of a connection prove to each other that they know the job's key, before anything that they send is used.
//
//   initiator → acceptor   hello: magic, version, from, to, ranks in the job, nonce (fixed layout, 64 bytes)
//   acceptor → initiator   hello, the same with its own nonce
//   initiator → acceptor   HMAC-SHA256(key, "gantry initiator" | both hellos)
//   acceptor → initiator   HMAC-SHA256(key, "gantry acceptor" | both hellos)
//
// Nonces are 256 fresh random bits of each side, so a recorded exchange proves nothing later; the label keeps a proof from being sent
// back to its maker; both hellos are under the proof, so ranks and version are what the other side said. The acceptor proves itself only
// to who has proved itself (challenge and response after ISO/IEC 9798-4, three passes, mutual). Numbers in a hello are only compared.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "comm/job.h"
#include "memory/status.h"

namespace gantry {

constexpr uint32_t kLinkVersion = 1;

// One side of it, without any socket: give it what comes, send what it has. Never reads past the exchange.
class Handshake {
 public:
  enum class Role : uint8_t { kInitiator, kAcceptor };
  static constexpr size_t kHelloBytes = 64, kProofBytes = 32;

  // `key` must outlive it. `peer`: the rank that must be at the other end; -1 (acceptor only): any other rank of the job.
  Handshake(Role role, const JobKey& key, int rank, int size, int peer);

  // What must be sent; Sent(n) takes n bytes off its front. After an error it is still to be sent where it is possible: the other side
  // learns from it what does not fit.
  std::span<const std::byte> output() const { return std::span(output_).subspan(sent_, output_size_ - sent_); }
  void Sent(size_t count) { sent_ += count; }
  // So many bytes, no more, are to be read next; 0 when nothing more comes.
  size_t wanted() const { return stage_ == Stage::kDone || stage_ == Stage::kFailed ? 0 : expected_ - filled_; }
  // At most wanted() bytes. kUnauthenticated: not a rank of this job; kFailedPrecondition: another version, or another number of ranks.
  absl::Status Received(std::span<const std::byte> bytes);
  bool done() const { return stage_ == Stage::kDone && output().empty(); }
  // The rank at the other end, proved once done() is true.
  int peer() const { return peer_; }

 private:
  enum class Stage : uint8_t { kHello, kProof, kDone, kFailed };

  void QueueHello();
  void QueueProof(Role of);
  absl::Status TakeHello();
  absl::Status TakeProof();
  std::array<uint8_t, kProofBytes> Proof(Role of) const;

  const Role role_;
  const JobKey& key_;
  const int rank_, size_;
  int peer_;
  Stage stage_ = Stage::kHello;
  std::array<std::byte, kHelloBytes> own_hello_{}, peer_hello_{};
  std::array<std::byte, kHelloBytes> input_{};
  size_t filled_ = 0, expected_ = kHelloBytes;
  std::array<std::byte, kHelloBytes + kProofBytes> output_{};
  size_t output_size_ = 0, sent_ = 0;
};

}  // namespace gantry
