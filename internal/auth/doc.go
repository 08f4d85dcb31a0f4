// Package auth is about people and tools: who asks, and whether they may.
//
// # Purpose
//
// It checks passwords (argon2id), opens log-in sessions, issues API tokens,
// knows the user behind a Unix socket, slows down guessing, and decides in one
// place, [Authorise], who may do what to which kind of object in which project.
//
// # Main types
//
// [Service] logs in and authenticates over the stores that its user hands in
// ([UserStore], [TokenStore]); [Principal] is the result, carried in a context;
// [Hasher] hashes passwords within a memory budget; [Limiter] delays guesses.
//
// # Invariants
//
// A password or a token is never stored, only its hash; nothing of either is
// ever logged or in an error. A stored hash never makes the verifier use more
// memory or time than its bounds. More log-ins than the budget allows never
// run at once. An unknown user never answers faster than a known one. A token
// never grants more than its user has at the moment of use. What no rule
// allows is never allowed.
//
// # Lock order
//
// Limiter.mu only; nothing is called with it held.
//
// # Not here
//
// Storage, cookies, HTTP headers and API codes: the manager and the surfaces.
// Processes: package pki; [HostPrincipal] only names one.
//
// OpenID Connect enters at [Service.Open]: whoever has verified an ID token
// opens a session for the user it names, without a password; the user's record
// says by which provider it is (User.Provider). Roles on projects are [Grant]s
// already, with the empty project for all; a project's own roles become further
// rows of the table in authorise.go, and nothing else changes.
package auth
