//go:build !race

package manager

// slack is by how much the race detector slows the tests of promises.
const slack = 1
