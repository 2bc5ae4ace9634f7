// One place that holds memory and runs work. memory/cpu implements it today; nothing else asks which device it has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "memory/status.h"

namespace gantry {

// A piece of a device's memory, reserved once, of exact size, freed with the object. It must not outlive its device.
class Slab {
 public:
  virtual ~Slab() = default;
  // 4096-byte aligned; null for a slab of 0 bytes. Readable and writable where the device's kernels run.
  virtual std::byte* data() const = 0;
  virtual int64_t size_bytes() const = 0;
  // A file of at least size_bytes() bytes, sealed against changes of its size, that other ranks of the node map to reach this memory;
  // open as long as the slab. -1 where this memory is not shared that way, or for 0 bytes.
  virtual int descriptor() const { return -1; }
};

// Thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string_view name() const = 0;  // "cpu:0"
  // The budget: what all slabs together may hold.
  virtual int64_t capacity_bytes() const = 0;
  virtual int64_t reserved_bytes() const = 0;
  // All of it is backed by memory when the call returns: no page is faulted in later. kResourceExhausted, naming what was
  // asked for, what is reserved and the capacity, where the budget or the machine does not have it.
  virtual absl::StatusOr<std::unique_ptr<Slab>> Reserve(int64_t bytes) = 0;
  // Threads that a kernel on this device may use.
  virtual int thread_count() const = 0;
};

struct CpuDeviceOptions {
  int64_t capacity_bytes = INT64_MAX;
  int thread_count = 0;  // 0: one for each core that the process may run on
  // Whether slabs have a descriptor. Memory that is this process's alone gets huge pages on more machines: see BackedMemory.
  bool shared = true;
};

// Nothing is left behind when a process dies.
std::unique_ptr<Device> MakeCpuDevice(const CpuDeviceOptions& options);

}  // namespace gantry
