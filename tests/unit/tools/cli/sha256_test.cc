#include "tools/cli/sha256.h"

#include <string>

#include <gtest/gtest.h>

namespace gantry::cli {
namespace {

std::string HashOf(const std::string& text, size_t piece) {
  Sha256 hash;
  for (size_t i = 0; i < text.size(); i += piece) hash.Update(text.data() + i, std::min(piece, text.size() - i));
  return hash.Finish();
}

// The examples of NIST (FIPS 180-2, appendix B), and the empty text.
TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(HashOf("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(HashOf("abc", 64), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(HashOf("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 64),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(HashOf(std::string(1000000, 'a'), 4096), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesDoNotMatter) {
  for (size_t size : {1, 55, 56, 63, 64, 65, 119, 120, 500}) {
    const std::string text(size, 'x');
    const std::string whole = HashOf(text, size);
    for (size_t piece : {1, 3, 63, 64, 65}) EXPECT_EQ(HashOf(text, piece), whole) << size << " in pieces of " << piece;
  }
}

}  // namespace
}  // namespace gantry::cli
