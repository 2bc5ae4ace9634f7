#include "comm/topology.h"

#include <hwloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

#include "absl/strings/str_join.h"
#include "comm/socket.h"

namespace gantry {
namespace {

constexpr unsigned kNvidia = 0x10de, kAmd = 0x1002;

std::string KindOf(hwloc_obj_t object) {
  switch (object->type) {
    case HWLOC_OBJ_MACHINE: return "machine";
    case HWLOC_OBJ_PACKAGE: return "package";
    case HWLOC_OBJ_DIE: return "die";
    case HWLOC_OBJ_NUMANODE: return "memory";
    case HWLOC_OBJ_CORE: return "core";
    case HWLOC_OBJ_BRIDGE: return "bridge";
    case HWLOC_OBJ_PCI_DEVICE: {
      const unsigned vendor = object->attr->pcidev.vendor_id, device_class = object->attr->pcidev.class_id >> 8;
      if (device_class == 0x03 || (device_class == 0x12 && (vendor == kNvidia || vendor == kAmd))) return "gpu";
      if (device_class == 0x02) return "network";
      return "pci";
    }
    case HWLOC_OBJ_OS_DEVICE:
      switch (object->attr->osdev.type) {
        case HWLOC_OBJ_OSDEV_NETWORK: return "interface";
        case HWLOC_OBJ_OSDEV_OPENFABRICS: return "rdma";
        case HWLOC_OBJ_OSDEV_BLOCK: return "block";
        case HWLOC_OBJ_OSDEV_GPU:
        case HWLOC_OBJ_OSDEV_COPROC: return "gpu";
        default: return "device";
      }
    default:
      if (hwloc_obj_type_is_dcache(object->type)) return absl::StrCat("l", object->attr->cache.depth);
      return "group";
  }
}

TopologyNode Convert(hwloc_obj_t object) {
  TopologyNode node;
  node.kind = KindOf(object);
  if (object->os_index != HWLOC_UNKNOWN_INDEX && object->type != HWLOC_OBJ_PCI_DEVICE && object->type != HWLOC_OBJ_BRIDGE) {
    node.number = static_cast<int>(object->os_index);
  }
  if (object->name != nullptr) node.name = object->name;
  if (object->type == HWLOC_OBJ_NUMANODE) node.bytes = object->attr->numanode.local_memory;
  if (hwloc_obj_type_is_dcache(object->type)) node.bytes = object->attr->cache.size;
  if (object->type == HWLOC_OBJ_PCI_DEVICE) {
    const auto& pci = object->attr->pcidev;
    const std::string place = absl::StrFormat("%04x:%02x:%02x.%d %04x:%04x", pci.domain, pci.bus, pci.dev, pci.func, pci.vendor_id, pci.device_id);
    node.name = node.name.empty() ? place : absl::StrCat(place, " ", node.name);
    node.gigabytes_per_second = pci.linkspeed;
  }
  if (object->cpuset != nullptr && object->type != HWLOC_OBJ_PU) {
    unsigned cpu;
    hwloc_bitmap_foreach_begin(cpu, object->cpuset) node.cpus.push_back(static_cast<int>(cpu));
    hwloc_bitmap_foreach_end();
  }
  for (hwloc_obj_t child = object->memory_first_child; child != nullptr; child = child->next_sibling) node.children.push_back(Convert(child));
  for (hwloc_obj_t child = object->first_child; child != nullptr; child = child->next_sibling) {
    if (child->type != HWLOC_OBJ_PU) node.children.push_back(Convert(child));
  }
  for (hwloc_obj_t child = object->io_first_child; child != nullptr; child = child->next_sibling) node.children.push_back(Convert(child));
  return node;
}

// "0-3,8".
std::string Ranges(const std::vector<int>& numbers) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i;
    while (end + 1 < numbers.size() && numbers[end + 1] == numbers[end] + 1) ++end;
    parts.push_back(end == i ? absl::StrCat(numbers[i]) : absl::StrCat(numbers[i], "-", numbers[end]));
    i = end + 1;
  }
  return absl::StrJoin(parts, ",");
}

std::string BytesText(uint64_t bytes) {
  if (bytes >= uint64_t{1} << 30) return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / (uint64_t{1} << 30));
  if (bytes >= uint64_t{1} << 20) return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return absl::StrFormat("%d KiB", bytes >> 10);
}

void Format(const TopologyNode& node, int depth, std::string& text) {
  absl::StrAppend(&text, std::string(static_cast<size_t>(2 * depth), ' '), node.kind);
  if (node.number >= 0) absl::StrAppend(&text, " ", node.number);
  if (!node.name.empty()) absl::StrAppend(&text, " ", node.name);
  if (node.bytes > 0) absl::StrAppend(&text, ", ", BytesText(node.bytes));
  if (node.gigabytes_per_second > 0) absl::StrAppendFormat(&text, ", %.1f GB/s", node.gigabytes_per_second);
  if (node.latency_seconds > 0) absl::StrAppendFormat(&text, ", %.3g us", 1e6 * node.latency_seconds);
  if (!node.cpus.empty()) absl::StrAppend(&text, ", cpus ", Ranges(node.cpus));
  text += '\n';
  for (const TopologyNode& child : node.children) Format(child, depth + 1, text);
}

std::string JsonText(std::string_view text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (static_cast<unsigned char>(letter) < 0x20) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned>(letter));
      continue;
    }
    if (letter == '"' || letter == '\\') out += '\\';
    out += letter;
  }
  return out + "\"";
}

void FormatJson(const TopologyNode& node, int depth, std::string& text) {
  const std::string indent(static_cast<size_t>(2 * depth), ' ');
  absl::StrAppend(&text, indent, "{\"kind\": ", JsonText(node.kind));
  if (depth == 0) absl::StrAppend(&text, ", \"version\": 1");
  if (node.number >= 0) absl::StrAppend(&text, ", \"number\": ", node.number);
  if (!node.name.empty()) absl::StrAppend(&text, ", \"name\": ", JsonText(node.name));
  if (node.bytes > 0) absl::StrAppend(&text, ", \"bytes\": ", node.bytes);
  if (node.gigabytes_per_second > 0) absl::StrAppendFormat(&text, ", \"gigabytes_per_second\": %.3f", node.gigabytes_per_second);
  if (node.latency_seconds > 0) absl::StrAppendFormat(&text, ", \"latency_seconds\": %.3g", node.latency_seconds);
  if (!node.cpus.empty()) absl::StrAppend(&text, ", \"cpus\": [", absl::StrJoin(node.cpus, ", "), "]");
  const char* separator = ", \"children\": [\n";
  for (const TopologyNode& child : node.children) {
    text += separator;
    FormatJson(child, depth + 1, text);
    separator = ",\n";
  }
  text += node.children.empty() ? "}" : "]}";
}

}  // namespace

absl::StatusOr<TopologyNode> DiscoverTopology() {
#if defined(__SANITIZE_ADDRESS__)
  // libpciaccess keeps a little for the process, and nobody can name it once hwloc has unloaded its plugin.
  const __lsan::ScopedDisabler library_keeps;
#endif
  hwloc_topology_t topology;
  if (hwloc_topology_init(&topology) != 0) return SystemError(errno, "hwloc");
  hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  hwloc_topology_set_icache_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
  if (hwloc_topology_load(topology) != 0) {
    const int error = errno;
    hwloc_topology_destroy(topology);
    return absl::UnavailableError(std::string(Message(SystemError(error, "hwloc cannot read this machine's topology"))));
  }
  // Memory that was added to a running virtual machine may be of no node: where there is one node, all of it is its own.
  if (const hwloc_obj_t memory = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, nullptr); memory != nullptr && memory->next_cousin == nullptr) {
    const uint64_t physical = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    memory->attr->numanode.local_memory = std::max<uint64_t>(memory->attr->numanode.local_memory, physical);
  }
  TopologyNode machine = Convert(hwloc_get_root_obj(topology));
  hwloc_topology_destroy(topology);
  return machine;
}

std::string FormatTopology(const TopologyNode& machine) {
  std::string text;
  Format(machine, 0, text);
  return text;
}

std::string FormatTopologyJson(const TopologyNode& machine) {
  std::string text;
  FormatJson(machine, 0, text);
  return text + "\n";
}

}  // namespace gantry
