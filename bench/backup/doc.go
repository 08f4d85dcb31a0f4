// Command backup measures Drover's repository beside what others use: borg, restic, kopia, desync, and qemu-img into compressed qcow2.
//
// The data are disks of four VMs made from real Debian packages and what they are a day later (scripts/bench-images). Every contender gets the same files, in
// the same run, each as a process of its own: time is the whole process's until it has ended and its data is synced to the disk (syncfs), memory is the
// largest resident set of it and its children. Rounds alternate; a number is the median. What is read lies in the page cache for all alike, as does what was just
// written: the disks of such machines are noisier than anything that is compared here.
//
// Steps: first backup of all four; day 2 by reading everything; restore of one disk of 3 GiB to a sparse file, and a byte-by-byte comparison of it outside
// the measured time; verification of all data; deletion of day 1 and reclaiming its space; bytes in the repository. Each contender has the fastest settings that
// are sensible, and for encryption its own default. Contenders that are not installed are named and left out: borg and qemu-img come with the project's
// dependencies, restic, kopia and desync are used if they are on the PATH.
package main
