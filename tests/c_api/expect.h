/* Checks for the tests of the C interface: a failed one is printed and counted; main returns expect_failures != 0. */
#ifndef GANTRY_TESTS_C_API_EXPECT_H_
#define GANTRY_TESTS_C_API_EXPECT_H_

#include <stdio.h>
#include <string.h>

static int expect_failures = 0;

#define EXPECT(condition)                                                   \
  do {                                                                      \
    if (!(condition)) {                                                     \
      printf("%s:%d: expected %s\n", __FILE__, __LINE__, #condition);       \
      ++expect_failures;                                                    \
    }                                                                       \
  } while (0)

/* The call gives `code`, and on an error the message has `words`. */
#define EXPECT_STATUS(call, code, words)                                                                              \
  do {                                                                                                                \
    const gantry_status status_ = (call);                                                                             \
    if (status_ != (code) || (status_ != GANTRY_OK && strstr(gantry_last_error(), words) == NULL)) {                  \
      printf("%s:%d: %s gave %s (%s), expected %s with '%s'\n", __FILE__, __LINE__, #call, gantry_status_name(status_), \
             gantry_last_error(), gantry_status_name(code), words);                                                   \
      ++expect_failures;                                                                                              \
    }                                                                                                                 \
  } while (0)
#define EXPECT_OK(call) EXPECT_STATUS(call, GANTRY_OK, "")

#endif
