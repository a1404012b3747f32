// Less authority, the end of it, and references that outlive the connection.

#include <capnp/schema.h>

#include "tour.h"

using capstore::Directory;
using capstore::File;
using capstore::Policy;
using capstore::Revoker;

void Tour::authority() {
  auto root = directory("m");
  auto work = named(root.mkdirRequest(), "authority").send().getDirectory();
  auto file = named(work.createRequest(), "file").send().getFile();
  tell("write", writing(file, 0, "content"));
  policies(work);
  references(work);
}

void Tour::policies(Directory::Client work) {
  auto reader = work.readOnlyRequest().send().getDirectory();
  tell("read through readOnly", reading(opening(reader, "file").send().getFile()));
  tell("create through readOnly", named(reader.createRequest(), "x"));
  tell("open for writing through readOnly", opening(reader, "file", capstore::OPEN_WRITE));
  tell("rename to readOnly", renaming(work, "file", reader, "x"));
  auto fileReader = opening(work, "file", capstore::OPEN_WRITE).send().getFile()
                        .readOnlyRequest().send().getFile();
  tell("write through File.readOnly", writing(fileReader, 0, "x"));

  // Less authority, and the power to take it back.
  auto attenuate = work.attenuateRequest();
  auto policy = attenuate.initPolicy();
  policy.setReadOnly(true);
  policy.setRevocable(true);
  // So many fields this program knows: a service that knows fewer refuses instead of guessing.
  policy.setFieldsKnown(capnp::Schema::from<Policy>().getFields().size());
  auto lent = attenuate.send();
  Directory::Client narrow = lent.getDirectory();
  Revoker::Client revoker = lent.getRevoker();

  File::Client opened = opening(narrow, "file").send().getFile();
  auto deeper = narrow.readOnlyRequest().send().getDirectory();
  tell("read what was lent", reading(opened));
  tell("write what was lent", writing(opened, 0, "x"));
  tell("create in what was lent", named(narrow.createRequest(), "x"));
  auto before = revoker.statusRequest().send().wait(waitScope);

  auto revoked = revoker.revokeRequest().send().wait(waitScope);
  auto after = revoker.statusRequest().send().wait(waitScope);
  Line("revoke")
      .text("code", codeOf(revoked))
      .flag("revoked before", before.getRevoked())
      .flag("something derived", before.getDerived() > 0)
      .flag("revoked", after.getRevoked());
  tell("read what was revoked", reading(opened));
  tell("stat what was revoked", narrow.statRequest());
  tell("stat what was derived", deeper.statRequest());
  tell("through a chain", reading(opening(narrow, "file").send().getFile()));
  tell("revoke again", revoker.revokeRequest());
  tell("the own authority is as it was", reading(opening(work, "file").send().getFile()));

  auto plain = work.attenuateRequest();
  plain.initPolicy();
  auto without = plain.send().wait(waitScope);
  Line("not revocable").text("code", codeOf(without)).flag("a revoker", without.hasRevoker());

  tell("move out from under a policy", renaming(without.getDirectory(), "file", work, "x"));
  tell("move in under a policy", renaming(work, "file", without.getDirectory(), "file"));

  auto expiring = work.attenuateRequest();
  expiring.initPolicy().setExpiresAt(1);
  auto over = expiring.send().getDirectory();
  tell("expired", over.statRequest());
  tell("expired decides before names do", named(over.subRequest(), "a/b"));
}

void Tour::references(Directory::Client work) {
  auto attenuate = work.attenuateRequest();
  auto policy = attenuate.initPolicy();
  policy.setReadOnly(true);
  policy.setRevocable(true);
  auto lent = attenuate.send();

  auto save = lent.getDirectory().saveRequest();
  save.setLabel("for a friend");
  auto saved = save.send().wait(waitScope);
  Line("save").text("code", codeOf(saved)).number("token size", saved.getToken().size());

  // Somewhere else, and with nothing but the token.
  Connection second(io, uri("m"));
  auto restore = second.gate().restoreRequest();
  restore.setToken(saved.getToken());
  auto friends = restore.send().getCapability().castAs<Directory>();
  auto content = reading(opening(friends, "file").send().getFile()).send().wait(waitScope);
  Line("read over another connection")
      .text("code", codeOf(content))
      .text("data", textOf(content.getData()));
  tell("create over another connection", named(friends.createRequest(), "x"));
  auto again = second.gate().restoreRequest();
  again.setToken(uri("m").token);
  auto root = again.send().getCapability().castAs<Directory>();
  auto place = named(root.mkdirRequest(), "place").send().getDirectory();
  tell("a target that came over another connection", linking(work, "file", place, "same"));

  auto control = connection.gate().referenceRequest();
  control.setToken(uri("m").token);
  auto owner = control.send().getReference();
  auto listed = owner.listRequest().send().wait(waitScope);
  for (auto info : listed.getReferences()) {
    Line("reference")
        .text("label", info.getLabel())
        .text("kind", kj::str(info.getKind()))
        .text("volume", info.getVolume())
        .text("saved by", info.getSavedBy())
        .flag("readOnly", info.getPolicy().getReadOnly());
  }
  auto id = listed.getReferences()[0].getId();
  auto renew = owner.renewRequest();
  renew.setId(id);
  renew.setExpiresAt(1);
  tell("renew to a time that is over", kj::mv(renew));

  // Another token for the same reference: the old one may have leaked.
  auto rotate = owner.rotateRequest();
  rotate.setId(id);
  auto rotated = rotate.send().wait(waitScope);
  for (auto token : {saved.getToken(), rotated.getToken()}) {
    auto request = second.gate().restoreRequest();
    request.setToken(token);
    tell("restore after a rotation", kj::mv(request));
  }
  tell("what was restored before", friends.statRequest());

  tell("revoke", lent.getRevoker().revokeRequest());
  tell("what the other connection holds", friends.statRequest());
  auto revoked = second.gate().restoreRequest();
  revoked.setToken(rotated.getToken());
  tell("restore what was revoked", kj::mv(revoked));

  auto kept = labelled(work.saveRequest(), "to be ended").send().wait(waitScope);
  auto found = second.gate().referenceRequest();
  found.setToken(kept.getToken());
  auto leaked = found.send().getReference();
  auto status = leaked.statusRequest().send().wait(waitScope);
  auto end = leaked.revokeRequest();
  end.setId(status.getInfo().getId());
  tell("whoever holds a token may end it", kj::mv(end));
  auto ended = second.gate().restoreRequest();
  ended.setToken(kept.getToken());
  tell("restore what was ended", kj::mv(ended));
}
