// Objects by key, puts in pieces, and names.

#include <kj/debug.h>

#include "tour.h"

using capstore::Directory;
using capstore::Store;

void Tour::stores() {
  auto objects = store("o");
  auto put = putting(objects, "notes/today", "milk").send().wait(waitScope);
  auto got = keyed(objects.getRequest(), "notes/today").send().wait(waitScope);
  Line("put and get")
      .text("code", codeOf(got))
      .text("data", textOf(got.getData()))
      .flag("same version", put.getVersion() == got.getVersion());

  auto absent = putting(objects, "notes/today", "other");
  absent.initCondition().setAbsent();
  tell("put if absent", kj::mv(absent));
  auto expected = putting(objects, "notes/today", "bread");
  expected.initCondition().setVersion(put.getVersion());
  tell("put if unchanged", kj::mv(expected));

  auto stat = keyed(objects.statRequest(), "notes/today").send().wait(waitScope);
  auto has = keyed(objects.hasRequest(), "nothing").send().wait(waitScope);
  Line("stat")
      .number("size", stat.getStat().getSize())
      .flag("a later version", stat.getStat().getVersion() > put.getVersion())
      .flag("nothing is there", !has.hasError() && !has.getPresent());
  auto range = keyed(objects.readRequest(), "notes/today");
  range.setOffset(1);
  range.setLength(3);
  auto part = range.send().wait(waitScope);
  Line("read")
      .text("data", textOf(part.getData()))
      .flag("eof", part.getEof())
      .number("size", part.getSize());

  // In pieces, of which none is awaited: they are taken in the order in which they are sent.
  auto begin = keyed(objects.beginRequest(), "large");
  auto sink = begin.send().getSink();
  kj::Vector<kj::Promise<void>> pieces;
  auto piece = kj::heapArray<kj::byte>(100'000);
  for (auto i : kj::zeroTo(20)) {
    memset(piece.begin(), 'a' + i, piece.size());
    auto write = sink.writeRequest();
    write.setData(piece);
    pieces.add(write.send().ignoreResult());
  }
  auto commit = sink.commitRequest().send().wait(waitScope);
  Line("sink").text("code", codeOf(commit)).number("size", commit.getSize());
  tell("a sink that was committed", sink.writeRequest());
  tell("get what is longer than a message", keyed(objects.getRequest(), "large"));

  auto batch = objects.batchRequest();
  auto items = batch.initItems(3);
  items[0].setKey(dataOf("a"));
  items[0].setPut(dataOf("1"));
  items[1].setKey(dataOf("b"));
  items[1].setPut(dataOf("2"));
  items[2].setKey(dataOf("notes/today"));
  items[2].setDelete();
  auto changed = batch.send().wait(waitScope);
  Line("batch").text("code", codeOf(changed)).number("versions", changed.getVersions().size());
  tell("get what was deleted", keyed(objects.getRequest(), "notes/today"));
  tell("delete", keyed(objects.deleteRequest(), "b"));

  auto list = objects.listRequest();
  list.setLimit(1);
  auto first = list.send().wait(waitScope);
  auto next = objects.listRequest();
  next.setCursor(first.getCursor());
  auto second = next.send().wait(waitScope);
  Line("list")
      .text("first", textOf(first.getObjects()[0].getKey()))
      .text("second", textOf(second.getObjects()[0].getKey()))
      .flag("the last page", !second.hasCursor());

  tell("delete through getOnly",
       keyed(objects.getOnlyRequest().send().getStore().deleteRequest(), "a"));
  auto dropBox = objects.putOnlyRequest().send().getStore();
  tell("get from a drop box", keyed(dropBox.getRequest(), "a"));
  auto dropped = putting(dropBox, "in/", "1").send().wait(waitScope);
  Line("drop").text("code", codeOf(dropped)).number("key size", dropped.getKey().size());
  auto sub = objects.subStoreRequest();
  sub.setPrefix(dataOf("in/"));
  auto below = sub.send().getStore();
  auto key = kj::str(dropped.getKey().asChars());
  tell("get below a prefix", keyed(below.getRequest(), key.slice(strlen("in/"))));

  auto attenuate = objects.attenuateRequest();
  auto policy = attenuate.initPolicy();
  policy.setMaxBytes(4);
  policy.setRevocable(true);
  auto lent = attenuate.send();
  tell("put within a quota", putting(lent.getStore(), "q", "1234"));
  tell("put over a quota", putting(lent.getStore(), "r", "5"));
  tell("revoke", lent.getRevoker().revokeRequest());
  tell("get what was revoked", keyed(lent.getStore().getRequest(), "q"));

  // More puts in pieces than a connection may have.
  kj::Vector<capstore::Sink::Client> sinks;
  kj::String code;
  while ((code = codeOf(keyed(objects.beginRequest(), "x").send().then([&](auto&& answer) {
            sinks.add(answer.getSink());
            return kj::mv(answer);
          }).wait(waitScope))) == "ok") {
    KJ_REQUIRE(sinks.size() < 1000, "no end of sinks");
  }
  Line("sinks").text("code", code);
  names(objects);
}

void Tour::names(Store::Client objects) {
  // Without a key the key is the SHA-256 of the content.
  auto hashed = putting(objects, "", "release 1").send().wait(waitScope);
  auto space = objects.namespaceRequest().send().getNamespace();
  auto bind = named(space.bindRequest(), "current");
  bind.initBinding().setHash(hashed.getKey());
  bind.initCondition().setAbsent();
  auto bound = bind.send().wait(waitScope);
  auto resolved = named(space.resolveRequest(), "current").send().wait(waitScope);
  Line("bind a hash")
      .text("code", codeOf(bound))
      .number("key size", hashed.getKey().size())
      .flag("same hash", resolved.getBinding().getHash() == hashed.getKey())
      .flag("a capability", resolved.hasCapability());

  // A name for what was saved: whoever resolves it gets a capability of another volume.
  auto root = directory("m");
  auto shared = named(root.mkdirRequest(), "shared").send().getDirectory();
  auto saved = labelled(shared.saveRequest(), "by name").send().wait(waitScope);
  auto lend = named(space.bindRequest(), "shared");
  lend.initBinding().setReference(0);
  lend.setToken(saved.getToken());
  tell("bind a reference", kj::mv(lend));
  auto lent = named(space.resolveRequest(), "shared").send();
  tell("use what a name stands for",
       named(lent.getCapability().castAs<Directory>().createRequest(), "made"));
  tell("find it by the own way", named(shared.lookupRequest(), "made"));

  auto listed = space.listRequest().send().wait(waitScope);
  kj::Vector<kj::String> found;
  for (auto binding : listed.getBindings()) {
    found.add(kj::str(binding.getName(), " ", binding.isHash() ? "hash" : "reference"));
  }
  Line("names").list("names", found);
  auto stale = named(space.unbindRequest(), "current");
  stale.initCondition().setVersion(bound.getVersion() + 1000);
  tell("unbind another version", kj::mv(stale));
  tell("unbind", named(space.unbindRequest(), "current"));
  tell("resolve what is gone", named(space.resolveRequest(), "current"));
}
