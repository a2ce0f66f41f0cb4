// Package sim runs an installation for a week of simulated time with 200 hosts:
// partitions, lost and doubled messages, crashes at named points with a torn last
// write, clocks that jump, disks that are slow, and people who ask, approve,
// break the glass, lock somebody out and leave. All along it looks whether what
// must stay true is true. Everything that is decided is the product's own code,
// on its real SQLite; the seed decides everything else.
package sim
