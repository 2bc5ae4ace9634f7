// Two ends that prove a key to each other, without sockets; and ends that lie.
#include "comm/handshake.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

using Role = Handshake::Role;
using Bytes = std::vector<std::byte>;

JobKey MakeKey() { return *JobKey::Generate(); }

Bytes TakeOutput(Handshake& from) {
  const Bytes bytes(from.output().begin(), from.output().end());
  from.Sent(bytes.size());
  return bytes;
}

// Gives all of it, `step` bytes at a time.
absl::Status Give(Handshake& to, std::span<const std::byte> bytes, size_t step = 1000) {
  while (!bytes.empty() && to.wanted() > 0) {
    const size_t count = std::min({step, to.wanted(), bytes.size()});
    GANTRY_RETURN_IF_ERROR(to.Received(bytes.first(count)));
    bytes = bytes.subspan(count);
  }
  return absl::OkStatus();
}


TEST(HandshakeTest, SameKeysAgree) {
  const JobKey key = MakeKey();
  for (const size_t step : {1, 7, 1000}) {
    Handshake initiator(Role::kInitiator, key, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
    ASSERT_TRUE(Give(acceptor, TakeOutput(initiator), step).ok());
    ASSERT_TRUE(Give(initiator, TakeOutput(acceptor), step).ok());
    EXPECT_FALSE(initiator.done() || acceptor.done());
    ASSERT_TRUE(Give(acceptor, TakeOutput(initiator), step).ok());
    ASSERT_TRUE(Give(initiator, TakeOutput(acceptor), step).ok());
    EXPECT_TRUE(initiator.done() && acceptor.done());
    EXPECT_EQ(initiator.peer(), 1);
    EXPECT_EQ(acceptor.peer(), 2);
    EXPECT_EQ(initiator.wanted() + acceptor.wanted(), 0u);
  }
}

TEST(HandshakeTest, AnotherKeyIsRefusedBeforeTheAcceptorProvesItself) {
  const JobKey key = MakeKey(), other = MakeKey();
  Handshake initiator(Role::kInitiator, other, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
  ASSERT_TRUE(Give(acceptor, TakeOutput(initiator)).ok());
  ASSERT_TRUE(Give(initiator, TakeOutput(acceptor)).ok());
  const absl::Status status = Give(acceptor, TakeOutput(initiator));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(acceptor.output().empty()) << "nothing that a guesser could test keys with";
  EXPECT_FALSE(acceptor.done());
  EXPECT_EQ(acceptor.wanted(), 0u);
}

TEST(HandshakeTest, AnAcceptorWithAnotherKeyIsRefused) {
  const JobKey key = MakeKey();
  Handshake initiator(Role::kInitiator, key, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
  ASSERT_TRUE(Give(acceptor, TakeOutput(initiator)).ok());
  ASSERT_TRUE(Give(initiator, TakeOutput(acceptor)).ok());
  Bytes invented(Handshake::kProofBytes, std::byte{7});
  EXPECT_EQ(Give(initiator, invented).code(), absl::StatusCode::kUnauthenticated);
}

TEST(HandshakeTest, ARecordedExchangeProvesNothing) {
  const JobKey key = MakeKey();
  Handshake initiator(Role::kInitiator, key, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
  const Bytes hello = TakeOutput(initiator);
  ASSERT_TRUE(Give(acceptor, hello).ok());
  const Bytes answer = TakeOutput(acceptor);
  ASSERT_TRUE(Give(initiator, answer).ok());
  const Bytes proof = TakeOutput(initiator);
  ASSERT_TRUE(Give(acceptor, proof).ok());
  const Bytes counter_proof = TakeOutput(acceptor);

  Handshake later(Role::kAcceptor, key, 1, 4, -1);
  ASSERT_TRUE(Give(later, hello).ok());
  EXPECT_EQ(Give(later, proof).code(), absl::StatusCode::kUnauthenticated);
  Handshake again(Role::kInitiator, key, 2, 4, 1);
  ASSERT_TRUE(Give(again, answer).ok());
  EXPECT_EQ(Give(again, counter_proof).code(), absl::StatusCode::kUnauthenticated);
}

TEST(HandshakeTest, AProofSentBackProvesNothing) {
  const JobKey key = MakeKey();
  Handshake initiator(Role::kInitiator, key, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
  ASSERT_TRUE(Give(acceptor, TakeOutput(initiator)).ok());
  ASSERT_TRUE(Give(initiator, TakeOutput(acceptor)).ok());
  EXPECT_EQ(Give(initiator, TakeOutput(initiator)).code(), absl::StatusCode::kUnauthenticated);
}

// Every bit of what the initiator says is under its proof, but for those that are refused at once.
TEST(HandshakeTest, EveryChangedBitIsNoticed) {
  const JobKey key = MakeKey();
  for (size_t bit = 0; bit < 8 * (Handshake::kHelloBytes + Handshake::kProofBytes); ++bit) {
    Handshake initiator(Role::kInitiator, key, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
    Bytes hello = TakeOutput(initiator);
    if (bit / 8 < hello.size()) hello[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    absl::Status status = Give(acceptor, hello);
    if (status.ok()) status = Give(initiator, TakeOutput(acceptor));
    if (status.ok()) {
      Bytes proof = TakeOutput(initiator);
      if (bit / 8 >= hello.size()) proof[bit / 8 - hello.size()] ^= static_cast<std::byte>(1 << bit % 8);
      status = Give(acceptor, proof);
    }
    EXPECT_FALSE(status.ok()) << "bit " << bit;
    EXPECT_FALSE(acceptor.done()) << "bit " << bit;
  }
}

TEST(HandshakeTest, AnotherVersionIsNamedOnBothSides) {
  const JobKey key = MakeKey();
  Handshake initiator(Role::kInitiator, key, 2, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
  Bytes hello = TakeOutput(initiator);
  hello[8] = std::byte{kLinkVersion + 6};
  absl::Status status = Give(acceptor, hello);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(status)), testing::HasSubstr("version 7"));
  Bytes answer = TakeOutput(acceptor);  // the acceptor still says its own
  ASSERT_EQ(answer.size(), Handshake::kHelloBytes);
  answer[8] = std::byte{kLinkVersion + 6};
  status = Give(initiator, answer);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(status)), testing::HasSubstr("version 7"));
}

TEST(HandshakeTest, AnotherJobSizeIsNamed) {
  const JobKey key = MakeKey();
  Handshake initiator(Role::kInitiator, key, 2, 8, 1), acceptor(Role::kAcceptor, key, 1, 4, -1);
  const absl::Status status = Give(acceptor, TakeOutput(initiator));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(status)), testing::HasSubstr("8 ranks"));
}

TEST(HandshakeTest, ImpossibleRanksAreRefused) {
  const JobKey key = MakeKey();
  struct {
    int from, to;
  } const cases[] = {{1, 1}, {4, 1}, {-1, 1}, {2, 0}};
  for (const auto& [from, to] : cases) {
    Handshake initiator(Role::kInitiator, key, from, 4, to), acceptor(Role::kAcceptor, key, 1, 4, -1);
    EXPECT_EQ(Give(acceptor, TakeOutput(initiator)).code(), absl::StatusCode::kUnauthenticated) << from << " to " << to;
  }
  Handshake initiator(Role::kInitiator, key, 3, 4, 1), acceptor(Role::kAcceptor, key, 1, 4, 2);
  EXPECT_EQ(Give(acceptor, TakeOutput(initiator)).code(), absl::StatusCode::kUnauthenticated) << "rank 2 was expected";
}

}  // namespace
}  // namespace gantry
