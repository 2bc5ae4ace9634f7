// What a rank does with messages of UCX that are a stranger's, or do not keep to the rules.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "comm/pool.h"
#include "comm/tcp/mailbox.h"
#include "comm/ucx/ucx_carrier.h"
#include "comm/ucx/ucx_library.h"
#include "tests/support/mailboxes.h"

namespace gantry::ucx {
namespace {

using testing::HasSubstr;
using tcp::FrameHeader;
using tcp::FrameKind;

// The sender's side, by hand.
class Stranger {
 public:
  Stranger() {
    const ucp_params_t params{.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_AM};
    EXPECT_EQ(Ucx().ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, nullptr, &context_), UCS_OK);
    const ucp_worker_params_t of_worker{.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                        .thread_mode = UCS_THREAD_MODE_SINGLE};
    EXPECT_EQ(Ucx().ucp_worker_create(context_, &of_worker, &worker_), UCS_OK);
  }
  ~Stranger() {
    Ucx().ucp_worker_destroy(worker_);
    Ucx().ucp_cleanup(context_);
  }

  void Send(std::span<const std::byte> address, std::span<const std::byte> header, size_t bytes, uint32_t flags) {
    const std::vector<std::byte> payload(bytes, std::byte{7});
    const ucp_ep_params_t params{.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
                                 .address = reinterpret_cast<const ucp_address_t*>(address.data()),
                                 .err_mode = UCP_ERR_HANDLING_MODE_PEER};
    ucp_ep_h endpoint = nullptr;
    ASSERT_EQ(Ucx().ucp_ep_create(worker_, &params, &endpoint), UCS_OK);
    const ucp_request_param_t how{.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = flags}, none{};
    Finish(Ucx().ucp_am_send_nbx(endpoint, UcxCarrier::kMessageId, header.data(), header.size(), payload.data(), payload.size(), &how));
    Finish(Ucx().ucp_ep_close_nbx(endpoint, &none));  // with what was sent
  }

 private:
  void Finish(ucs_status_ptr_t request) {
    ASSERT_FALSE(UCS_PTR_IS_ERR(request));
    if (request == nullptr) return;
    for (int look = 0; look < 30000 && Ucx().ucp_request_check_status(request) == UCS_INPROGRESS; ++look) {
      Ucx().ucp_worker_progress(worker_);
      usleep(1000);
    }
    EXPECT_EQ(Ucx().ucp_request_check_status(request), UCS_OK);
    Ucx().ucp_request_free(request);
  }

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
};

// How long an end of the connection is waited for that is to come, and one that is not to come.
constexpr absl::Duration kEnds = absl::Seconds(30), kStays = absl::Milliseconds(200);

// Rank 0 with a carrier; what becomes of its connection with rank 1 after a message from `from` with that header.
absl::Status StatusAfter(const FrameHeader& frame, bool knows_secret, absl::Duration longest, int64_t from = 1, size_t cut = 0,
                         uint32_t flags = 0) {
  Mailboxes ranks;
  std::unique_ptr<UcxCarrier> carrier;  // outlives its mailbox
  ranks.Open();
  std::unique_ptr<tcp::Mailbox> mailbox = std::move(ranks.mailboxes[0]);
  carrier = *UcxCarrier::Open(*mailbox, 2);
  EXPECT_TRUE(carrier->Begin(absl::Seconds(60)).ok());

  UcxCarrier::Envelope envelope{.secret = carrier->SecretOf(1), .from = from, .frame = Encode(frame)};
  if (!knows_secret) envelope.secret[3] ^= std::byte{1};
  Stranger().Send(carrier->address(), std::as_bytes(std::span(&envelope, 1)).subspan(cut),
                  static_cast<size_t>(std::clamp<int64_t>(frame.bytes, 0, 1 << 19)), flags);
  for (const absl::Time end = absl::Now() + longest; mailbox->StatusOf(1).ok() && absl::Now() < end;) usleep(2000);
  const absl::Status status = mailbox->StatusOf(1);
  ranks.mailboxes[1].reset();
  mailbox.reset();
  return status;
}

TEST(UcxTest, NonsenseUnderTheRightSecretEndsTheConnection) {
  const struct {
    FrameHeader frame;
    const char* says;
  } kCases[] = {
      {{.kind = static_cast<FrameKind>(99), .bytes = 8}, "unknown kind 99"},
      {{.kind = FrameKind::kData, .bytes = UcxCarrier::kPieceBytes + 1}, "262145 bytes of content"},
      {{.kind = FrameKind::kGot, .sequence = 5, .bytes = 8}, "nobody asked for"},
      {{.kind = FrameKind::kPut, .bytes = 8}, "beside the connection"},
      {{.kind = FrameKind::kFetchAdd}, "beside the connection"},
  };
  for (const auto& one : kCases) {
    const absl::Status status = StatusAfter(one.frame, true, kEnds);
    EXPECT_THAT(std::string(Message(status)), HasSubstr(one.says));
    EXPECT_THAT(std::string(Message(status)), HasSubstr("what rank 1 sent by UCX"));
  }
}

TEST(UcxTest, WhatAStrangerSendsIsNotLookedAt) {
  const FrameHeader nonsense{.kind = static_cast<FrameKind>(99), .bytes = 8};
  EXPECT_TRUE(StatusAfter(nonsense, false, kStays).ok());
  for (const int64_t from : {int64_t{-1}, int64_t{0}, int64_t{2}, int64_t{1} << 40})
    EXPECT_TRUE(StatusAfter(nonsense, true, kStays, from).ok()) << from;
  EXPECT_TRUE(StatusAfter(nonsense, true, kStays, 1, 8).ok());
}

// It is acknowledged all the same; rank 1, which knows that it has sent nothing, then has had enough.
TEST(UcxTest, WhatNobodyAwaitsIsThrownAway) {
  for (const int64_t bytes : {8, 8000}) {
    const absl::Status status =
        StatusAfter({.kind = FrameKind::kData, .group = 5, .sequence = 1, .value = 100, .bytes = bytes}, true, kEnds);
    EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1 closed the connection"));
  }
}

TEST(UcxTest, NothingIsFetchedWithoutAWayBack) {
  const FrameHeader frame{.kind = FrameKind::kData, .group = 5, .sequence = 1, .bytes = UcxCarrier::kPieceBytes};
  EXPECT_THAT(std::string(Message(StatusAfter(frame, true, kEnds, 1, 0, UCP_AM_SEND_FLAG_RNDV))), HasSubstr("has no way back"));
}

}  // namespace
}  // namespace gantry::ucx
