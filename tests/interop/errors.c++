// Errors are results: provoking them, and what a chain of calls reports.

#include <capnp/schema.h>

#include "tour.h"

using capstore::Directory;
using capstore::Expect;
using capstore::File;
using capstore::RenameMode;

namespace {

class NotOfThisService final : public Directory::Server {
  // A Directory that this program serves itself, and that does nothing.
};

}  // namespace

void Tour::errors() {
  auto root = directory("m");
  auto work = named(root.mkdirRequest(), "errors").send().getDirectory();
  auto inner = named(work.mkdirRequest(), "inner").send().getDirectory();
  auto file = named(inner.createRequest(), "file").send().getFile();
  auto full = kj::heapArray<kj::byte>((1 << 20) + 1);
  memset(full.begin(), 'x', full.size());

  tell("notFound", opening(work, "nothing"));
  tell("alreadyExists", named(work.mkdirRequest(), "inner"));
  tell("alreadyExists exclusive",
       opening(inner, "file",
               capstore::OPEN_WRITE | capstore::OPEN_CREATE | capstore::OPEN_EXCLUSIVE));
  tell("notDirectory", named(inner.subRequest(), "file"));
  tell("notDirectory expected", removing(inner, "file", Expect::DIRECTORY));
  tell("isDirectory", opening(work, "inner"));
  tell("isDirectory expected", removing(work, "inner", Expect::NOT_DIRECTORY));
  tell("notEmpty", removing(work, "inner"));
  for (auto name : {"", ".", "..", "a/b"}) {
    tell("invalidName", named(work.subRequest(), name));
  }
  auto longName = kj::str(kj::repeat('x', 256));
  tell("invalidName longer than 255 bytes", named(work.subRequest(), longName));
  tell("invalidArgument flags", opening(work, "inner", 1 << 20));
  tell("invalidArgument into itself", renaming(work, "inner", inner, "x"));
  tell("invalidArgument foreign target",
       renaming(work, "inner", kj::heap<NotOfThisService>(), "x"));
  auto opened = opening(inner, "file").send().getFile();
  tell("readOnly opened without openWrite", writing(opened, 0, "x"));
  tell("readOnly volume", named(directory("archive").mkdirRequest(), "x"));
  tell("crossVolume", renaming(work, "inner", directory("small"), "x"));
  tell("unsupported", [&]() {
    auto request = work.attenuateRequest();
    // What a client of the future asks for, and this service cannot know.
    request.initPolicy().setFieldsKnown(60000);
    return request;
  }());

  auto tooLarge = file.writeRequest();
  tooLarge.setData(full);
  tell("tooLarge", kj::mv(tooLarge));
  auto noSpace = named(directory("small").createRequest(), "x").send().getFile().writeRequest();
  noSpace.setData(full.slice(0, 1 << 19));
  tell("noSpace", kj::mv(noSpace));
  tell("corrupt", reading(opening(directory("archive"), "damaged").send().getFile()));

  // A failed call gives a broken capability, and a chain reports its first cause.
  auto nowhere = named(work.subRequest(), "nothing").send().getDirectory();
  auto deep = named(nowhere.subRequest(), "..").send().getDirectory();
  tell("first cause", reading(opening(deep, "x").send().getFile()));
  auto below = named(inner.subRequest(), "file").send().getDirectory();
  auto nameless = named(below.subRequest(), "").send().getDirectory();
  tell("first cause of two", named(nameless.createRequest(), "x"));
  tell("a broken target", renaming(work, "inner", nowhere, "x"));
  auto created = named(nowhere.createRequest(), "x").send().getFile();
  tell("a broken file", created.syncRequest());
}

void Tour::codes() {
  // All there are: this volume fails a lookup with the code that it is asked for.
  auto failing = directory("failing");
  for (auto code : capnp::Schema::from<capstore::ErrorCode>().getEnumerants()) {
    auto name = code.getProto().getName();
    tell(name, named(failing.lookupRequest(), name));
  }
  auto bug = named(failing.lookupRequest(), "a bug").send().wait(waitScope);
  Line("a bug").text("code", codeOf(bug)).text("message", bug.getError().getMessage());
}
