// How fast the network is that a connection goes over.
#pragma once

#include <string>

namespace gantry {

// "0.125 GB/s expected of eth0", as the driver of the interface that a TCP socket is bound to says; "lo names no rate"
// where it does not. The device alone: a switch or a shaper in between may be slower.
std::string DescribeLinkRate(int socket);

}  // namespace gantry
