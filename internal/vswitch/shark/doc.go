// Package shark lets tests ask tshark what it makes of our frames.
//
// # Purpose
//
// Encoders are easily wrong in the way that their own decoders are. tshark is the second opinion.
//
// # Main types
//
// Fields decodes frames and returns single fields of each.
//
// # Invariants
//
// Nothing but tests imports it.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Capture files for users (vswitch/frame).
package shark
