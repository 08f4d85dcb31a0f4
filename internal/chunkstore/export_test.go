package chunkstore

// MemoryIndex is an index for tests that open thousands of repositories.
func MemoryIndex(string, [16]byte) (Index, error) { return newMemoryIndex(), nil }
