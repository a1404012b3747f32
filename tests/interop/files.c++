// The gate, the walk in one round trip, and files.

#include <kj/debug.h>

#include "tour.h"

using capstore::Directory;
using capstore::Gate;

void Tour::walk() {
  auto token = uri("m").token;
  Gate::Client gate = connection.gate();

  // Nothing is awaited on the way: each call is addressed to the result of the one before.
  auto restore = gate.restoreRequest();
  restore.setToken(token);
  Directory::Client root = restore.send().getCapability().castAs<Directory>();

  auto a = root.subRequest();
  a.setName("a");
  auto b = a.send().getDirectory().subRequest();
  b.setName("b");
  auto open = b.send().getDirectory().openRequest();
  open.setName("c");
  auto read = open.send().getFile().readRequest();
  read.setOffset(0);
  read.setLength(4096);

  auto content = read.send().wait(waitScope);
  if (content.hasError()) {
    KJ_FAIL_REQUIRE("cannot read c", content.getError().getCode(), content.getError().getMessage());
  }
  Line("walk").text("data", textOf(content.getData())).flag("eof", content.getEof());
}

void Tour::gate() {
  auto gate = connection.gate();
  auto told = gate.infoRequest().send().wait(waitScope);
  auto info = told.getInfo();
  uint64_t transferBytes = 0;
  for (auto limit : info.getLimits()) {
    if (limit.getName() == "maxTransferBytes") transferBytes = limit.getValue();
  }
  Line("info")
      .flag("same version", info.getProtocolVersion() == capstore::PROTOCOL_VERSION)
      .text("software", info.getSoftware())
      .number("maxTransferBytes", transferBytes);

  for (auto volume : {"m", "o"}) {
    auto restore = gate.restoreRequest();
    restore.setToken(uri(volume).token);
    auto restored = restore.send().wait(waitScope);
    Line("restore").text("code", codeOf(restored)).text("kind", kj::str(restored.getKind()));
  }

  auto right = uri("m").token;
  auto cut = kj::str(right.slice(0, right.size() - 1));
  auto changed = kj::str(cut, right.endsWith("A") ? "E" : "A");
  for (kj::StringPtr wrong : {cut.asPtr(), changed.asPtr(), "?"_kj, ""_kj}) {
    auto restore = gate.restoreRequest();
    restore.setToken(wrong);
    auto refused = restore.send().wait(waitScope);
    auto root = refused.getCapability().castAs<Directory>();
    Line("wrong token")
        .text("code", codeOf(refused))
        .text("message", refused.getError().getMessage())
        .text("code of its root", codeOf(root.statRequest().send().wait(waitScope)));
  }
}

void Tour::files() {
  auto root = directory("m");
  auto create = root.createRequest();
  create.setName("notes");
  create.setExecutable(true);
  auto file = create.send().getFile();
  tell("write", writing(file, 0, "hello"));
  tell("write behind the end", writing(file, 8, "world"));

  auto append = file.appendRequest();
  append.setData(dataOf("!"));
  auto appended = append.send().wait(waitScope);
  Line("append").text("code", codeOf(appended)).number("offset", appended.getOffset());

  for (auto range : {kj::tuple(0, 100), kj::tuple(8, 5), kj::tuple(100, 1)}) {
    auto answer = reading(file, kj::get<0>(range), kj::get<1>(range)).send().wait(waitScope);
    Line("read")
        .text("code", codeOf(answer))
        .number("size", answer.getData().size())
        .flag("zeros between", answer.getData().size() == 14 && answer.getData()[5] == 0)
        .flag("eof", answer.getEof());
  }

  auto before = file.statRequest().send().wait(waitScope);
  auto truncate = file.truncateRequest();
  truncate.setSize(5);
  tell("truncate", kj::mv(truncate));
  tell("sync", file.syncRequest());
  auto after = file.statRequest().send().wait(waitScope);
  auto stat = after.getStat();
  Line("stat")
      .text("kind", kj::str(stat.getKind()))
      .flag("executable", stat.getExecutable())
      .text("provenance", kj::str(stat.getProvenance()))
      .number("links", stat.getLinkCount())
      .number("size before", before.getStat().getSize())
      .number("size", stat.getSize())
      .flag("same node", before.getStat().getNodeId() == stat.getNodeId())
      .flag("same version", before.getStat().getVersion() == stat.getVersion());

  auto set = named(root.setAttributesRequest(), "notes");
  auto attributes = set.initAttributes();
  attributes.setSetModified(true);
  attributes.setModified(-1);  // before 1970
  attributes.setSetExecutable(true);
  attributes.setExecutable(false);
  tell("setAttributes", kj::mv(set));
  auto looked = named(root.lookupRequest(), "notes").send().wait(waitScope);
  auto entry = looked.getEntry();
  Line("lookup")
      .text("name", entry.getName())
      .flag("executable", entry.getStat().getExecutable())
      .flag("modified as set", entry.getStat().getModified() == -1);

  tell("close", file.closeRequest());
  tell("close again", file.closeRequest());
  tell("read what was closed", reading(file));
  auto told = file.statRequest().send().wait(waitScope);
  Line("stat what was closed").text("code", codeOf(told)).number("size", told.getStat().getSize());
}
