// The threads that share one step.
//
// All members run the same function and meet at barriers. Between two barriers they may share one
// list of items, of which each takes the next few: a member that the system holds up leaves the
// rest to the others. Kernels see only the functions below; they live in team.cpp, which is
// compiled for any processor.
#pragma once

namespace quietchoir {

class Team;

int team_size(const Team& team);
// Waits for all members. What any wrote before, all read after.
void team_barrier(Team& team);
// Takes the next items of `total` since the last barrier: [from, to). False when none are left.
// `least` items at a time.
bool team_take(Team& team, int total, int least, int& from, int& to);

// Owner's side.
Team* team_new(
    int size);  // the caller of team_run is one of `size`; throws std::system_error without threads
void team_free(Team* team);
void team_run(Team& team, void (*work)(void* argument, int member), void* argument);

}  // namespace quietchoir
