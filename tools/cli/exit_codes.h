// What the program's exit status says; docs/reference/exit-codes.md is the reference. Numbers from 64 on are those of sysexits.h.
#pragma once

namespace gantry::cli {

enum ExitCode : int {
  kExitOk = 0,
  kExitNegative = 1,        // the answer is no: outside tolerance, no placement found, a loss that is not finite
  kExitUsage = 64,          // the command line is wrong
  kExitBadData = 65,        // an input file is damaged or does not fit
  kExitMissingInput = 66,   // an input file is not there or not readable
  kExitUnavailable = 69,    // memory, a device or another resource is missing
  kExitInternal = 70,       // a bug in Gantry
  kExitCannotCreate = 73,   // an output file or folder cannot be made
  kExitInputOutput = 74,    // reading or writing failed, or the disk is full
  kExitResumable = 75,      // stopped on request, nothing lost: start again with --resume latest
};

}  // namespace gantry::cli
