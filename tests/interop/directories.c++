// Directories: listing by pages, links, renaming with a capability as an argument, removing.

#include "tour.h"

using capstore::Directory;
using capstore::Expect;
using capstore::RenameMode;

void Tour::directories() {
  auto root = directory("m");
  auto work = named(root.mkdirRequest(), "desk").send().getDirectory();
  auto other = named(root.mkdirRequest(), "other").send().getDirectory();
  for (auto name : {"one", "two", "three", "\xc3\xbc"}) {
    tell("create", named(work.createRequest(), name));
  }

  // Page by page: the first cursor is empty, and so is the one behind the last page.
  kj::Vector<kj::String> names;
  kj::Array<kj::byte> cursor;
  uint64_t pages = 0;
  do {
    auto list = work.listRequest();
    list.setCursor(cursor);
    list.setLimit(3);
    auto page = list.send().wait(waitScope);
    for (auto entry : page.getEntries()) {
      names.add(kj::str(entry.getName()));
    }
    cursor = kj::heapArray(page.getCursor().asBytes());
    ++pages;
  } while (cursor.size() > 0);
  Line("list").number("pages", pages).list("names", names);

  auto symlink = named(work.symlinkRequest(), "pointer");
  symlink.setTarget("../anywhere");
  tell("symlink", kj::mv(symlink));
  auto pointer = named(work.lookupRequest(), "pointer").send().wait(waitScope);
  Line("lookup a symlink")
      .text("kind", kj::str(pointer.getEntry().getStat().getKind()))
      .text("target", pointer.getEntry().getTarget());
  tell("open a symlink", opening(work, "pointer"));

  tell("link", linking(work, "one", other, "same"));
  auto one = named(work.lookupRequest(), "one").send().wait(waitScope);
  auto same = named(other.lookupRequest(), "same").send().wait(waitScope);
  Line("linked")
      .number("links", same.getEntry().getStat().getLinkCount())
      .flag("same node",
            one.getEntry().getStat().getNodeId() == same.getEntry().getStat().getNodeId());

  // The target is a capability: the service recognises its own, and who passes it needs it.
  auto held = opening(work, "two").send().getFile();
  tell("rename", renaming(work, "two", other, "moved"));
  tell("rename without replacing", renaming(work, "one", other, "moved", RenameMode::NO_REPLACE));
  tell("exchange", renaming(work, "three", other, "moved", RenameMode::EXCHANGE));
  tell("rename into a pipelined target",
       renaming(work, "three", named(root.subRequest(), "other").send().getDirectory(), "last"));
  tell("a held file outlives its name", held.statRequest());

  auto snapshot = other.snapshotRequest().send().getDirectory();
  tell("remove", removing(other, "moved", Expect::NOT_DIRECTORY));
  tell("the name that was removed", named(other.lookupRequest(), "moved"));
  tell("the same in a snapshot", named(snapshot.lookupRequest(), "moved"));
  tell("a snapshot only reads", named(snapshot.mkdirRequest(), "x"));
  auto usage = root.usageRequest().send().wait(waitScope);
  Line("usage").flag("of 64 MiB", usage.getUsage().getTotalBytes() == 64 << 20);
}
