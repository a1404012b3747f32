// Each policy that bears on what a directory does, alone, and some of them stacked.

#include <capnp/schema.h>
#include <kj/function.h>

#include "tour.h"

using capstore::Directory;
using capstore::File;
using capstore::Policy;

namespace {

Directory::Client under(Directory::Client directory, kj::Function<void(Policy::Builder)> fill) {
  auto attenuate = directory.attenuateRequest();
  auto policy = attenuate.initPolicy();
  policy.setFieldsKnown(capnp::Schema::from<Policy>().getFields().size());
  fill(policy);
  return attenuate.send().getDirectory();
}

auto appending(File::Client file, kj::StringPtr text) {
  auto request = file.appendRequest();
  request.setData(dataOf(text));
  return request;
}

}  // namespace

void Tour::narrowings() {
  auto root = directory("m");
  auto work = named(root.mkdirRequest(), "narrowings").send().getDirectory();
  auto logs = named(work.createRequest(), "log").send().getFile();
  tell("write", writing(logs, 0, "1"));

  auto appendOnly = under(work, [](auto policy) { policy.setAppendOnly(true); });
  auto log = opening(appendOnly, "log", capstore::OPEN_WRITE).send().getFile();
  tell("appendOnly: append", appending(log, "2"));
  tell("appendOnly: write", writing(log, 0, "x"));
  tell("appendOnly: create", named(appendOnly.createRequest(), "new"));
  tell("appendOnly: remove", removing(appendOnly, "log"));
  tell("appendOnly: open and truncate",
       opening(appendOnly, "log", capstore::OPEN_WRITE | capstore::OPEN_TRUNCATE));

  auto quota = under(work, [](auto policy) {
    policy.setMaxBytes(4);
    policy.setMaxNodes(2);
  });
  auto file = named(quota.createRequest(), "counted").send().getFile();
  tell("maxBytes: within", writing(file, 0, "1234"));
  tell("maxBytes: over", writing(file, 4, "5"));
  tell("maxNodes: within", named(quota.mkdirRequest(), "second"));
  tell("maxNodes: over", named(quota.mkdirRequest(), "third"));
  auto usage = quota.usageRequest().send().wait(waitScope);
  Line("usage of a quota")
      .number("bytes", usage.getUsage().getTotalBytes())
      .number("used bytes", usage.getUsage().getUsedBytes())
      .number("nodes", usage.getUsage().getTotalNodes())
      .number("used nodes", usage.getUsage().getUsedNodes());
  tell("maxNodes: remove", removing(quota, "second"));
  tell("maxNodes: within again", named(quota.mkdirRequest(), "third"));

  auto small = under(work, [](auto policy) { policy.setMaxFileBytes(3); });
  auto brief = named(small.createRequest(), "short").send().getFile();
  tell("maxFileBytes: within", writing(brief, 0, "123"));
  tell("maxFileBytes: over", writing(brief, 1, "123"));

  auto hiding = under(work, [](auto policy) {
    auto names = policy.initHiddenNames(1);
    names.set(0, "*.key");
  });
  tell("make what is hidden", named(work.createRequest(), "a.key"));
  tell("hiddenNames: lookup", named(hiding.lookupRequest(), "a.key"));
  tell("hiddenNames: create", named(hiding.createRequest(), "b.key"));
  auto page = hiding.listRequest().send().wait(waitScope);
  kj::Vector<kj::String> names;
  for (auto entry : page.getEntries()) {
    names.add(kj::str(entry.getName()));
  }
  Line("hiddenNames: list").list("names", names);

  auto dry = under(work, [](auto policy) { policy.setDryRun(true); });
  tell("dryRun: remove", removing(dry, "log"));
  tell("dryRun: remove what is not there", removing(dry, "nothing"));
  tell("nothing was removed", named(work.lookupRequest(), "log"));

  auto stacked = under(hiding, [](auto policy) { policy.setAppendOnly(true); });
  stacked = under(stacked, [](auto policy) { policy.setMaxFileBytes(3); });
  tell("stacked: hidden", named(stacked.lookupRequest(), "a.key"));
  auto again = opening(stacked, "log", capstore::OPEN_WRITE).send().getFile();
  tell("stacked: write", writing(again, 0, "x"));
  tell("stacked: append within", appending(again, "3"));
  tell("stacked: append over", appending(again, "4"));
}
