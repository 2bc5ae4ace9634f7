#include "comm/shared_region.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory/device.h"

namespace gantry {
namespace {

Descriptor Duplicate(int descriptor) { return Descriptor(fcntl(descriptor, F_DUPFD_CLOEXEC, 0)); }

TEST(SharedRegionTest, TwoMappingsAreOneMemory) {
  absl::StatusOr<SharedRegion> one = SharedRegion::Create("test", 10000);
  ASSERT_TRUE(one.ok()) << Message(one.status());
  absl::StatusOr<SharedRegion> two = SharedRegion::Map("test", Duplicate(one->descriptor()), 10000, Access::kReadWrite);
  ASSERT_TRUE(two.ok()) << Message(two.status());
  EXPECT_NE(one->data(), two->data());
  one->data()[9999] = std::byte{7};
  EXPECT_EQ(two->data()[9999], std::byte{7});
  EXPECT_NE(ftruncate(one->descriptor(), 100), 0);  // sealed
}

TEST(SharedRegionTest, WhatCouldEndTheProcessIsRefused) {
  Descriptor not_sealed(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(not_sealed.get(), 8192), 0);
  EXPECT_EQ(SharedRegion::Map("test", Duplicate(not_sealed.get()), 8192, Access::kReadWrite).status().code(),
            absl::StatusCode::kFailedPrecondition);
  absl::StatusOr<SharedRegion> region = SharedRegion::Create("test", 4096);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(SharedRegion::Map("test", Duplicate(region->descriptor()), 8192, Access::kReadWrite).status().code(),
            absl::StatusCode::kFailedPrecondition);  // smaller than announced
  EXPECT_EQ(SharedRegion::Map("test", Descriptor(open("/dev/null", O_RDWR | O_CLOEXEC)), 4096, Access::kReadWrite)
                .status()
                .code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(SharedRegion::Create("test", 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SharedRegionTest, SlabsCanBeLentToBeRead) {
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  absl::StatusOr<std::unique_ptr<Slab>> slab = device->Reserve(5000);
  ASSERT_TRUE(slab.ok());
  ASSERT_TRUE(SharedRegion::LendReadOnly((*slab)->descriptor()).ok());
  EXPECT_EQ(SharedRegion::Map("test", Duplicate((*slab)->descriptor()), 5000, Access::kReadWrite).status().code(),
            absl::StatusCode::kPermissionDenied);
  absl::StatusOr<SharedRegion> read = SharedRegion::Map("test", Duplicate((*slab)->descriptor()), 5000, Access::kRead);
  ASSERT_TRUE(read.ok()) << Message(read.status());
  (*slab)->data()[4999] = std::byte{3};  // its owner still writes
  EXPECT_EQ(read->data()[4999], std::byte{3});
  EXPECT_DEATH(read->data()[0] = std::byte{1}, "");
}

}  // namespace
}  // namespace gantry
