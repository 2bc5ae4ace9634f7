#include "comm/handshake.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>
#include <string_view>

namespace gantry {
namespace {

constexpr std::string_view kMagic = "GANTRY\r\n";
constexpr size_t kVersionAt = 8, kFromAt = 12, kToAt = 16, kSizeAt = 20, kNonceAt = 24, kNonceBytes = 32;  // 8 zero bytes end it

void PutU32(std::byte* to, uint32_t value) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<std::byte>(value >> (8 * i));
}

uint32_t GetU32(const std::byte* from) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= static_cast<uint32_t>(from[i]) << (8 * i);
  return value;
}

}  // namespace

Handshake::Handshake(Role role, const JobKey& key, int rank, int size, int peer)
    : role_(role), key_(key), rank_(rank), size_(size), peer_(peer) {
  std::memcpy(own_hello_.data(), kMagic.data(), kMagic.size());
  PutU32(own_hello_.data() + kVersionAt, kLinkVersion);
  PutU32(own_hello_.data() + kFromAt, static_cast<uint32_t>(rank_));
  PutU32(own_hello_.data() + kToAt, static_cast<uint32_t>(peer_));
  PutU32(own_hello_.data() + kSizeAt, static_cast<uint32_t>(size_));
  randombytes_buf(own_hello_.data() + kNonceAt, kNonceBytes);
  if (role_ == Role::kInitiator) QueueHello();
}

void Handshake::QueueHello() {
  std::memcpy(output_.data() + output_size_, own_hello_.data(), kHelloBytes);
  output_size_ += kHelloBytes;
}

void Handshake::QueueProof(Role of) {
  const std::array<uint8_t, kProofBytes> proof = Proof(of);
  std::memcpy(output_.data() + output_size_, proof.data(), kProofBytes);
  output_size_ += kProofBytes;
}

std::array<uint8_t, Handshake::kProofBytes> Handshake::Proof(Role of) const {
  const std::string_view label = of == Role::kInitiator ? "gantry initiator" : "gantry acceptor";
  const auto& first = role_ == Role::kInitiator ? own_hello_ : peer_hello_;
  const auto& second = role_ == Role::kInitiator ? peer_hello_ : own_hello_;
  const auto update = [](crypto_auth_hmacsha256_state& state, const auto& bytes) {
    crypto_auth_hmacsha256_update(&state, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  };
  crypto_auth_hmacsha256_state state;
  crypto_auth_hmacsha256_init(&state, key_.bytes().data(), key_.bytes().size());
  update(state, label);
  update(state, first);
  update(state, second);
  std::array<uint8_t, kProofBytes> proof;
  crypto_auth_hmacsha256_final(&state, proof.data());
  sodium_memzero(&state, sizeof(state));
  return proof;
}

absl::Status Handshake::Received(std::span<const std::byte> bytes) {
  if (bytes.size() > wanted()) {
    stage_ = Stage::kFailed;
    return absl::InternalError("a handshake was given more bytes than it asked for");
  }
  std::copy(bytes.begin(), bytes.end(), input_.begin() + filled_);
  filled_ += bytes.size();
  if (filled_ < expected_) return absl::OkStatus();
  filled_ = 0;
  const absl::Status status = stage_ == Stage::kHello ? TakeHello() : TakeProof();
  if (!status.ok()) stage_ = Stage::kFailed;
  return status;
}

absl::Status Handshake::TakeHello() {
  peer_hello_ = input_;
  if (std::memcmp(peer_hello_.data(), kMagic.data(), kMagic.size()) != 0) {
    return absl::UnauthenticatedError("what answers is not a rank of Gantry");
  }
  if (role_ == Role::kAcceptor) {
    const uint32_t from = GetU32(peer_hello_.data() + kFromAt);
    PutU32(own_hello_.data() + kToAt, from);
    QueueHello();  // also where it does not fit: the other side sees why
  }
  const uint32_t version = GetU32(peer_hello_.data() + kVersionAt);
  if (version != kLinkVersion) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the other end speaks version %d of the link protocol, this one version %d: all ranks need the same Gantry", version, kLinkVersion));
  }
  const uint32_t size = GetU32(peer_hello_.data() + kSizeAt);
  if (size != static_cast<uint32_t>(size_)) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the other end is of a job with %d ranks, this one has %d", size, size_));
  }
  const uint32_t from = GetU32(peer_hello_.data() + kFromAt), to = GetU32(peer_hello_.data() + kToAt);
  if (to != static_cast<uint32_t>(rank_)) {
    return absl::UnauthenticatedError(absl::StrFormat("the other end looks for rank %d, this is rank %d", to, rank_));
  }
  if (from >= static_cast<uint32_t>(size_) || from == static_cast<uint32_t>(rank_) ||
      (peer_ >= 0 && from != static_cast<uint32_t>(peer_))) {
    return absl::UnauthenticatedError(absl::StrFormat("the other end says that it is rank %d, which it cannot be", from));
  }
  peer_ = static_cast<int>(from);
  if (role_ == Role::kInitiator) QueueProof(Role::kInitiator);
  stage_ = Stage::kProof;
  expected_ = kProofBytes;
  return absl::OkStatus();
}

absl::Status Handshake::TakeProof() {
  const Role of = role_ == Role::kInitiator ? Role::kAcceptor : Role::kInitiator;
  const std::array<uint8_t, kProofBytes> right = Proof(of);
  if (sodium_memcmp(input_.data(), right.data(), kProofBytes) != 0) {
    return absl::UnauthenticatedError(
        absl::StrFormat("who says that it is rank %d has another key: it is not of this job", peer_));
  }
  if (role_ == Role::kAcceptor) QueueProof(Role::kAcceptor);
  stage_ = Stage::kDone;
  return absl::OkStatus();
}

}  // namespace gantry
