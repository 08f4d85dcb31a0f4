// Package manifest reads and writes resources as YAML and JSON documents.
//
// # Purpose
//
// What "drover apply", "delete -f" and "get -o yaml" speak: documents with kind, meta and spec. A document is a wish about some
// fields; those that it doesn't name stay as they are.
//
// # Main types
//
// Doc is one document, with its place in its file. Merge lays it over a message. Changed says which fields differ. YAML and JSON
// write messages so that Parse reads them again.
//
// # Invariants
//
// A field that the API does not have is never passed over: it is an error with its line. A status, and what else only the
// manager sets, never comes from a document. Reading never follows a file, an address or an alias without bound.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Talking to the manager, the order of kinds (cli).
package manifest
