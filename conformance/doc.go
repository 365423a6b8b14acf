// Package conformance holds answers that AWS was recorded to give, and replays the
// requests behind them against lambdad: testdata/lambda-errors.tsv (recorded
// 2022 to 2026) and what real clients, the AWS SDK for Go among them, make of the
// endpoint. It has tests only. What differs is listed there, each with its
// reason; a difference that goes away fails the test, so that the list stays true.
package conformance
