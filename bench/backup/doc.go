// Command backup measures Drover's repository beside what others use: borg, restic, kopia, desync, and qemu-img into compressed qcow2.
//
// The data are disks of four VMs and what they are a day later (scripts/bench-images). One template, a file system with Debian's base packages and a kernel, is made
// once; each VM (web server, database, builder, desktop) is a copy of it into which its own packages' files were written, so that what they share stays where it was,
// as with clones. 12.9 GB logical, 6.9 GB allocated, 4.5 GB of distinct 64 KiB blocks; until day 2 files are replaced by new ones in new places, a log grows and 16 MB
// of a database come: 2.9 % of what is allocated is in other blocks. The program measures these numbers itself and prints them.
//
// Every contender gets the same files, in the same run, each as a process of its own: time is the whole process's until it has ended and its data is synced to
// the disk (syncfs), memory is the largest resident set of it and its children. Rounds alternate; a number is the median. Who is more than a quarter from the best on
// every line in the first round is not run again. What is read is read once before, so that it lies in the page cache for all alike, as does what was just written:
// the disks of such machines are noisier than anything that is compared here.
//
// Parts (-parts): limits, what copying, hashing and the codecs reach here; peers, first backup of all four, day 2 by reading everything, by being told what
// changed, restore of one disk to a sparse file with a byte-by-byte comparison outside the measured time, verification of all data, deletion of day 1 and reclaiming
// its space, the same where every other 4 MiB of a disk died, memory, bytes stored; dense, packs rewritten as idle time does, beside the smallest peer; beside, a
// writer while another process collects; scale, a synthetic repository (a real log and real pages of 110 TB of restore points, with no data behind them) and an index
// of 1 TiB of distinct blocks; s3, requests to a real S3 server; guests, real tiny guests in a lab with two hosts.
//
// Each contender has the fastest settings that are sensible, and for encryption its own default. Those that are not installed are named and left out: borg and
// qemu-img come with the project's dependencies, restic, kopia and desync are used if they are on the PATH.
package main
