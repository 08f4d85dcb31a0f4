// Package report has what the benchmarks share: the rows of numbers, the table for people and the file for programs.
package report
