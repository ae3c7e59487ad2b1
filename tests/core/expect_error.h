#pragma once
#include <gtest/gtest.h>

#include "core/error.h"

/// Runs `statement`, which must throw an Error of this kind whose text contains `part`.
#define EXPECT_OCCAM_ERROR(statement, expected_kind, part)                  \
  do {                                                                      \
    try {                                                                   \
      statement;                                                            \
      ADD_FAILURE() << "no Error thrown";                                   \
    } catch (const ::occam::Error& e) {                                     \
      EXPECT_EQ(int(e.kind()), int(expected_kind)) << e.what();             \
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)        \
          << "the text is: " << e.what() << "\n  expected in it: " << part; \
    }                                                                       \
  } while (false)
